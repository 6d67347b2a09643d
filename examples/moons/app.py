"""Serves a model in ONNX format: POST /predict with {"rows": [[x, y], …]} answers the class of each row."""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

MODEL = Path(__file__).with_name("model.onnx")


class Handler(BaseHTTPRequestHandler):
    """Answers with classes, and with the revision that they are from."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    session: onnxruntime.InferenceSession

    def do_GET(self) -> None:
        self.answer(200, {"revision": os.environ.get("DSTACK_REVISION")})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            rows = np.asarray(json.loads(body)["rows"], dtype=np.float32)
            labels = self.session.run(["label"], {self.session.get_inputs()[0].name: rows})[0]
        except Exception as error:  # noqa: BLE001 - whatever was sent, the server goes on
            self.answer(400, {"error": f'send {{"rows": [[x, y], …]}}: {error}'})
        else:
            self.answer(200, {"labels": labels.tolist(), "revision": os.environ.get("DSTACK_REVISION")})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if not self.requestline.startswith("GET /health "):  # a line for each probe would drown the others
            super().log_request(code, size)


def main() -> None:
    """Serve until it is stopped."""
    if not MODEL.exists():
        raise SystemExit(f"{MODEL.name} is missing: flows/train_and_deploy.py trains it")
    Handler.session = onnxruntime.InferenceSession(MODEL)
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
    print(f"serving on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
