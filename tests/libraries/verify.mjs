// Verifies a webhook with the libraries that receivers use. Reads { secret, headers, body } from standard input and
// prints the libraries that accept it. A library that accepts a changed body ends the program with an error.
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { Webhook as StandardWebhook } from "standardwebhooks";
import { Webhook as SvixWebhook } from "svix";

const { secret, headers, body } = JSON.parse(readFileSync(0, "utf8"));
const openai = new OpenAI({ apiKey: "unused", webhookSecret: secret });
const libraries = {
  openai: (text) => openai.webhooks.unwrap(text, headers),
  standardwebhooks: (text) => new StandardWebhook(secret).verify(text, headers),
  svix: (text) => new SvixWebhook(secret).verify(text, headers),
};

for (const [name, verify] of Object.entries(libraries)) {
  const event = await verify(body);
  if (event.type !== JSON.parse(body).type) throw new Error(`${name} returned another event`);
  const isAccepted = await Promise.resolve()
    .then(() => verify(`${body} `))
    .then(() => true, () => false);
  if (isAccepted) throw new Error(`${name} accepts a changed body`);
  console.log(name);
}
