"""Verifies a webhook with the libraries that receivers use. Reads {secret, headers, body} from standard input and prints
the libraries that accept it. A library that accepts a changed body ends the program with an error."""

import json
import sys

import openai
import standardwebhooks
import svix

webhook = json.load(sys.stdin)
secret, headers, body = webhook["secret"], webhook["headers"], webhook["body"]
client = openai.OpenAI(api_key="unused", webhook_secret=secret)
libraries = {
    "openai": lambda text: client.webhooks.verify_signature(text, headers),
    "standardwebhooks": lambda text: standardwebhooks.Webhook(secret).verify(text, headers),
    "svix": lambda text: svix.Webhook(secret).verify(text, headers),
}

for name, verify in libraries.items():
    verify(body)
    try:
        verify(body + " ")
    except Exception:
        print(name)
    else:
        sys.exit(f"{name} accepts a changed body")
