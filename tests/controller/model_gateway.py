"""A stand-in for SGLang's model gateway, and for the servers behind it: run as `model_gateway.py ROLE`.

A router answers GET requests with what the next of its workers answers, and 503 without any. It takes a
worker as the real one does, which accepts it first and lists it once it has answered.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Server(ThreadingHTTPServer):
    """A router or a worker."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, role: str, port: int = 0) -> None:
        super().__init__((os.environ.get("LISTEN", "127.0.0.1"), port), Handler)
        self.role = role
        self.workers: dict[str, dict[str, Any]] = {}
        self.turns, self.ids = itertools.count(), itertools.count(1)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server

    def do_GET(self) -> None:
        server = self.server
        if self.path == "/health":
            self._answer(503 if server.role == "unwell" else 200, {})
        elif server.role == "router":
            if self.path == "/workers":
                self._answer(200, {"workers": [{"id": id_, **it} for id_, it in server.workers.items()]})
            else:
                self._route()
        elif self.path == "/server_info" and server.role in ("prefill", "decode"):
            mode = {"disaggregation_mode": server.role, "disaggregation_bootstrap_port": 8998}
            self._answer(200, {"status": "ready", **mode})
        elif self.path == "/server_info":
            self._answer(404, {})
        else:
            self._answer(200, {"role": server.role, "revision": os.environ.get("DSTACK_REVISION")})

    def do_POST(self) -> None:
        worker = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        threading.Thread(target=self._take, args=(worker,)).start()
        self._answer(202, {"status": "accepted"})

    def do_DELETE(self) -> None:
        found = self.server.workers.pop(self.path.rpartition("/")[2], None)
        self._answer(202 if found else 404, {"status": "accepted"})

    def _take(self, worker: dict[str, Any]) -> None:
        if _ask(worker["url"], "/health")[0] == 200:
            self.server.workers[f"worker-{next(self.server.ids)}"] = worker

    def _route(self) -> None:
        workers = list(self.server.workers.values())
        if not workers:
            self._answer(503, {"error": "no worker"})
            return
        status, body = _ask(workers[next(self.server.turns) % len(workers)]["url"], self.path)
        self._answer(status, json.loads(body))

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called there
        pass


def _ask(url: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


if __name__ == "__main__":
    with Server(sys.argv[1], int(os.environ["PORT"])) as server:
        stop = threading.Thread(target=server.shutdown)
        signal.signal(signal.SIGTERM, lambda *_: stop.start())
        print("serving", flush=True)
        server.serve_forever(poll_interval=0.1)
