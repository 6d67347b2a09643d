"""A service that speaks OpenAI's API, and says one word after another until it is told to go on."""

from __future__ import annotations

import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORDS = ("one", "two", "three")
# The last word is only said once this file is there: whoever has the others got them before the end.
GO_ON = Path(os.environ.get("GO_ON", os.devnull))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in WORDS:
            while word == WORDS[-1] and not GO_ON.exists():
                time.sleep(0.05)
            delta = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            self._event(
                {"id": "1", "object": "chat.completion.chunk", "model": asked["model"], "choices": [delta]}
            )
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, content: object) -> None:
        self._chunk(f"data: {json.dumps(content)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
