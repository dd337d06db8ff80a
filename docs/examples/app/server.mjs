// A small backend for docs/tutorial/add-to-your-app.md, with nothing but Node's built-in modules.
//
//   HUB         URL of the hub, as the browser reaches it
//   HUB_SECRET  one of the hub's auth.hs256_secrets
//   PORT        port of this server, on loopback

import { createHmac, randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';

const HUB = process.env.HUB ?? 'http://localhost:8080';
const SECRET = process.env.HUB_SECRET;
const PORT = Number(process.env.PORT ?? 8081);
if (!SECRET) throw new Error('HUB_SECRET is not set');

const encode = value => Buffer.from(JSON.stringify(value)).toString('base64url');

/** Returns a JWT for the hub: `sub` is the owner of the jobs, `scope` limits what the token may do. */
function hubToken(userId, scope, lifetimeSeconds = 15 * 60) {
  const exp = Math.floor(Date.now() / 1000) + lifetimeSeconds;
  const unsigned = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode({ sub: userId, scope, exp })}`;
  return `${unsigned}.${createHmac('sha256', SECRET).update(unsigned).digest('base64url')}`;
}

/** Submits a video for a user. A request that is repeated with the same `requestId` returns the same job. */
async function submit(userId, prompt, requestId) {
  const response = await fetch(new URL('/v1/videos', HUB), {
    method: 'POST',
    headers: {
      Authorization: `Bearer ${hubToken(userId, 'jobs:write')}`,
      'Content-Type': 'application/json',
      'Idempotency-Key': requestId,
    },
    body: JSON.stringify({ model: 'kling-v3.0-pro', prompt, platform: 'tiktok' }),
  });
  return { status: response.status, body: await response.json() };
}

/** Returns the user of a request. Replace it with your own session. This one assigns a random id to every browser. */
function userOf(request, response) {
  const known = /(?:^|; )user=([\w-]+)/.exec(request.headers.cookie ?? '')?.[1];
  if (known) return known;
  const id = randomUUID();
  response.setHeader('Set-Cookie', `user=${id}; HttpOnly; SameSite=Lax; Path=/`);
  return id;
}

async function readJson(request) {
  let text = '';
  for await (const chunk of request) {
    text += chunk;
    if (text.length > 64 * 1024) throw new Error('request body is too large');
  }
  return JSON.parse(text);
}

function sendJson(response, status, body) {
  response.writeHead(status, { 'Content-Type': 'application/json', 'Cache-Control': 'no-store' });
  response.end(JSON.stringify(body));
}

const routes = {
  'GET /': async (request, response) => {
    userOf(request, response);
    response.writeHead(200, { 'Content-Type': 'text/html; charset=utf-8' });
    response.end(await readFile(new URL('index.html', import.meta.url)));
  },
  // A token for the browser. It may read this user's jobs and nothing else.
  'GET /api/hub': async (request, response) => {
    sendJson(response, 200, { url: HUB, token: hubToken(userOf(request, response), 'jobs:read') });
  },
  'POST /api/videos': async (request, response) => {
    const user = userOf(request, response);
    const { prompt, requestId = randomUUID() } = await readJson(request);
    const { status, body } = await submit(user, prompt, requestId);
    sendJson(response, status, body);
  },
};

createServer(async (request, response) => {
  const { pathname } = new URL(request.url, 'http://localhost');
  const route = routes[`${request.method} ${pathname}`];
  if (!route) return sendJson(response, 404, { error: 'not found' });
  try {
    await route(request, response);
  } catch (error) {
    console.error(error);
    if (!response.headersSent) sendJson(response, 500, { error: 'internal error' });
  }
}).listen(PORT, '127.0.0.1', () => console.log(`app listening on http://localhost:${PORT}`));
