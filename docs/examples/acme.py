"""Local server that implements the API of Acme Video, the fictional provider in acme.toml.

Usage: python3 acme.py PORT WEBHOOK_SECRET

A prompt that contains "silent" gets no final webhook. A prompt that contains "unsafe" is rejected.
"""
import hashlib, hmac, json, sys, threading, time, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, SECRET, TASKS = int(sys.argv[1]), sys.argv[2].encode(), {}


def send_webhook(task, url):
    body = json.dumps(task).encode()
    timestamp = str(int(time.time()))
    signature = hmac.new(SECRET, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    headers = {"Content-Type": "application/json", "x-acme-signature": f"t={timestamp},v1={signature}"}
    urllib.request.urlopen(urllib.request.Request(url, body, headers)).read()


def render(task, url):
    for fraction in (0.25, 0.5, 0.75):
        time.sleep(0.4)
        if task["state"] == "stopped":
            return
        task.update(state="rendering", fraction=fraction)
        if url:
            send_webhook(task, url)
    task.update(state="done", files=["https://cdn.acme.example/clip.mp4"])
    if url and "silent" not in task["prompt"]:
        send_webhook(task, url)


class Api(BaseHTTPRequestHandler):
    def respond(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.respond(200, TASKS[self.path.split("/")[3]])

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        if self.path.endswith("/cancel"):
            task = TASKS[self.path.split("/")[3]]
            task["state"] = "stopped"
            return self.respond(200, task)
        if "unsafe" in body["prompt"]:
            return self.respond(422, {"error": {"code": "blocked", "message": "unsafe prompt"}})
        task = {"id": f"gen_{len(TASKS) + 1}", "client_ref": body["client_ref"], "state": "waiting", "prompt": body["prompt"]}
        TASKS[task["id"]] = task
        self.respond(200, dict(task))
        threading.Thread(target=render, args=(task, body.get("webhook"))).start()

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Api).serve_forever()
