"""A small HTTP application to deploy: it answers, streams, echoes, dawdles and misbehaves on request.

`python app.py [PORT]`, or the port in the variable `PORT` (default 8000); nothing but the standard library.

| request | answer |
| --- | --- |
| `GET /` | JSON: `service`, `version` (variables `SERVICE`, `VERSION`), `hostname`, `pid` |
| `GET /headers` | JSON: the request's method, path and headers, as a list of pairs |
| `GET /health` | 200, or the status last set by `POST /health?status=500` |
| `GET /sse?seconds=N` | server-sent events, one each 100 ms, then `event: end` |
| `GET /slow?seconds=N` | 200 after N seconds |
| `GET /big?mb=N` | N MB |
| `POST /echo` | the body of the request |
| `GET /ws` | a websocket that sends back each message |
| `POST /exit?code=N` | 200, then the process ends |

On SIGTERM it accepts nothing more, finishes the requests in flight and exits with 0. Variables that make it
hard: `START_DELAY` (seconds before it listens), `BROKEN=exit` (ends at once with 1), `BROKEN=never` (never
listens), `BROKEN=500` (answers 500 to everything).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Application(ThreadingHTTPServer):
    """The server, with what it remembers from request to request."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, port: int) -> None:
        self.health = 200
        self.stopping = threading.Event()
        self._in_flight = 0
        self._changed = threading.Condition()
        super().__init__(("0.0.0.0", port), Handler)

    def server_bind(self) -> None:
        # Not the one of HTTPServer, which asks a nameserver for this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "application", self.server_address[1]

    def enter(self) -> None:
        """Count a request in flight."""
        with self._changed:
            self._in_flight += 1

    def leave(self) -> None:
        """Count a request that is over."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def wait_until_idle(self) -> None:
        """Return when no request is in flight."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight == 0)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # Without it, the headers and the body go as two packets, and the second waits for an answer to the first.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: Application

    def do_GET(self) -> None:
        """Answer any request."""
        self.server.enter()
        try:
            self._answer()
            self.wfile.flush()
        finally:
            self.server.leave()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET  # noqa: N815 - names given by the base class

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Say nothing about single requests."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        # Always read: what is left of a body would be taken for the next request of the connection.
        self.body = self._read_body()
        if os.environ.get("BROKEN") == "500":
            self._send(500, {"error": "broken on request"})
            return
        answers = {
            "/": self._hello,
            "/headers": self._headers,
            "/health": self._health,
            "/sse": self._events,
            "/slow": self._slow,
            "/big": lambda: self._send(200, b"0" * (int(self.query.get("mb", "1")) * 1_000_000)),
            "/echo": lambda: self._send(200, self.body, self.headers.get("Content-Type", "text/plain")),
            "/ws": self._websocket,
            "/exit": self._exit,
        }
        answers.get(url.path, lambda: self._send(404, {"error": f"nothing at {url.path}"}))()

    def _hello(self) -> None:
        version, service = os.environ.get("VERSION", "1"), os.environ.get("SERVICE", "hello")
        answer = {
            "service": service,
            "version": version,
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._send(200, answer)

    def _headers(self) -> None:
        pairs = [[name, value] for name, value in self.headers.items()]
        self._send(200, {"method": self.command, "path": self.path, "headers": pairs})

    def _health(self) -> None:
        if self.command == "POST":
            self.server.health = int(self.query.get("status", "200"))
            self._send(200, {"status": self.server.health})
        else:
            self._send(self.server.health, {"status": self.server.health})

    def _slow(self) -> None:
        seconds = float(self.query.get("seconds", "1"))
        time.sleep(seconds)
        self._send(200, {"slept": seconds})

    def _exit(self) -> None:
        if self.command != "POST":
            self._send(405, {"error": "POST only"})
            return
        code = int(self.query.get("code", "0"))
        self._send(200, {"exit": code})
        self.wfile.flush()
        os._exit(code)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue
        return b"".join(parts)

    def _send(self, status: int, content: object, kind: str = "application/json") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self._end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _end_headers(self) -> None:
        if self.server.stopping.is_set():
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()

    def _events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self._end_headers()
        count = max(1, round(float(self.query.get("seconds", "1")) * 10))
        for number in range(count):
            event = json.dumps({"number": number, "of": count, "pid": os.getpid()})
            self._chunk(f"data: {event}\n\n".encode())
            time.sleep(0.1)
        self._chunk(b"event: end\ndata: {}\n\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _websocket(self) -> None:
        if "websocket" not in self.headers.get("Upgrade", "").lower():
            self._send(426, {"error": "a websocket only"})
            return
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest())
        self.send_header("Sec-WebSocket-Accept", accept.decode())
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        message, kind = b"", 0
        while True:
            final, code, data = self._read_frame()
            if code == 0x8:  # close
                self._write_frame(code, data[:2])
                return
            if code == 0x9:  # ping
                self._write_frame(0xA, data)
            elif code < 0x8:  # text, binary, or the continuation of one
                kind = code or kind
                message += data
                if final:
                    self._write_frame(kind, message)
                    message = b""

    def _read_frame(self) -> tuple[bool, int, bytes]:
        head = self.rfile.read(2)
        if len(head) < 2:
            return True, 0x8, b""
        length = head[1] & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self.rfile.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.rfile.read(8))
        mask = self.rfile.read(4) if head[1] & 0x80 else bytes(4)
        data = self.rfile.read(length)
        clear = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
        return bool(head[0] & 0x80), head[0] & 0x0F, clear

    def _write_frame(self, code: int, data: bytes) -> None:
        if len(data) < 126:
            head = struct.pack("!BB", 0x80 | code, len(data))
        elif len(data) < 1 << 16:
            head = struct.pack("!BBH", 0x80 | code, 126, len(data))
        else:
            head = struct.pack("!BBQ", 0x80 | code, 127, len(data))
        self.wfile.write(head + data)
        self.wfile.flush()


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else int(os.environ.get("PORT", "8000"))
    broken = os.environ.get("BROKEN")
    if broken == "exit":
        print("cannot start: broken on request", file=sys.stderr, flush=True)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    time.sleep(float(os.environ.get("START_DELAY", "0")))
    if broken == "never":
        print("never listening, on request", flush=True)
        signal.pause()
    server = Application(port)

    def stop(*_: object) -> None:
        server.stopping.set()
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"listening on port {port}", flush=True)
    server.serve_forever(poll_interval=0.05)
    server.socket.close()
    server.wait_until_idle()
    print("stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
