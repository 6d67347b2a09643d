"""A web server that says hello, in nothing but the standard library.

It listens on 127.0.0.1:$PORT, answers every GET and HEAD with JSON, keeps connections alive, and on SIGTERM
or SIGINT finishes the requests that it has begun before it exits.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """A thread per connection; closing waits for the requests in flight and ends the idle connections."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        self.lock = threading.Lock()
        self.idle: set[socket.socket] = set()
        self.stopping = False
        super().__init__(("127.0.0.1", port), Handler)

    def server_close(self) -> None:
        with self.lock:
            self.stopping = True
            for connection in self.idle:
                connection.shutdown(socket.SHUT_RD)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that has gone is nobody's mistake
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers each request with who answered it."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may be silent
    wbufsize = -1  # headers and body in one packet

    def handle_one_request(self) -> None:
        with self.server.lock:
            if self.server.stopping:
                self.close_connection = True
                return
            self.server.idle.add(self.connection)
        try:
            super().handle_one_request()
        finally:
            self.leave_idle()

    def parse_request(self) -> bool:
        self.leave_idle()  # the request line is here: from now on a stop waits for the answer
        return super().parse_request()

    def leave_idle(self) -> None:
        with self.server.lock:
            self.server.idle.discard(self.connection)

    def do_GET(self) -> None:
        answer = {
            "greeting": os.environ.get("GREETING", "Hello from prefect-dstack!"),
            "path": self.path,
            "pid": os.getpid(),
            "revision": os.environ.get("DSTACK_REVISION"),
        }
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        unread = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        if self.server.stopping or unread:  # a body left unread would pass for the next request
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if not self.requestline.startswith("GET /health "):  # a line for each probe would drown the others
            super().log_request(code, size)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    with Server(int(os.environ["PORT"])) as server:

        def stop(*_: object) -> None:
            # shutdown() waits for serve_forever(), which this handler has interrupted.
            threading.Thread(target=server.shutdown).start()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        print(f"serving on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever(poll_interval=0.1)
        print("stopping", flush=True)


if __name__ == "__main__":
    main()
