"""A stand-in for the invented provider of acme.toml: python3 acme.py 8091 shared-secret

A prompt with "silent" tells its end to nobody, one with "unsafe" is declined.
"""
import hashlib, hmac, json, sys, threading, time, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, SECRET, TASKS = int(sys.argv[1]), sys.argv[2].encode(), {}


def tell(task, url):
    body = json.dumps(task).encode()
    now = str(int(time.time()))
    seal = hmac.new(SECRET, now.encode() + b"." + body, hashlib.sha256).hexdigest()
    headers = {"Content-Type": "application/json", "x-acme-signature": f"t={now},v1={seal}"}
    urllib.request.urlopen(urllib.request.Request(url, body, headers)).read()


def render(task, url):
    for fraction in (0.25, 0.5, 0.75):
        time.sleep(0.4)
        if task["state"] == "stopped":
            return
        task.update(state="rendering", fraction=fraction)
        if url:
            tell(task, url)
    task.update(state="done", files=["https://cdn.acme.example/clip.mp4"])
    if url and "silent" not in task["prompt"]:
        tell(task, url)


class Api(BaseHTTPRequestHandler):
    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.answer(200, TASKS[self.path.split("/")[3]])

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        if self.path.endswith("/cancel"):
            task = TASKS[self.path.split("/")[3]]
            task["state"] = "stopped"
            return self.answer(200, task)
        if "unsafe" in body["prompt"]:
            return self.answer(422, {"error": {"code": "blocked", "message": "unsafe prompt"}})
        task = {"id": f"gen_{len(TASKS) + 1}", "client_ref": body["client_ref"], "state": "waiting", "prompt": body["prompt"]}
        TASKS[task["id"]] = task
        self.answer(200, dict(task))
        threading.Thread(target=render, args=(task, body.get("webhook"))).start()

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Api).serve_forever()
