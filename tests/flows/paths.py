"""A service that knows `/` and `/health`, and `/slow`, which takes two seconds; any other path is 404."""

from __future__ import annotations

import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/slow":
            time.sleep(2)
        known = path in ("/", "/health", "/slow")
        # Applications that look at `Host` refuse names that are not theirs.
        refused = self.headers["Host"] in os.environ.get("REFUSED_HOSTS", "").split()
        refused |= os.environ.get("NEEDED_HEADER", "Host") not in self.headers
        body = json.dumps({"revision": os.environ["DSTACK_REVISION"], "pid": os.getpid()}).encode()
        self.send_response(400 if refused else 200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
