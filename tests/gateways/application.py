"""A small HTTP application that tells what reached it, and a client that counts what failed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.polling import wait_until


@dataclass
class Seen:
    """A request as the application received it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Application:
    """Answers on a port of 127.0.0.1, in a thread of its own, until it is stopped.

    `/` answers with the replica's name; `/slow?seconds=`, `/status?code=`, `/events?count=&seconds=`,
    `/websocket`, `/die` (closes the connection without an answer) and `/unmeasured` (ends its answer
    with the connection) do what they say. `headers` are added to every other answer.
    """

    def __init__(self, name: str = "replica", port: int = 0) -> None:
        self.name = name
        self.seen: list[Seen] = []
        self.counts: Counter[str] = Counter()
        self.healthy = True
        self.headers = ""
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait(5)

    def _run(self, started: threading.Event) -> None:
        async def serve() -> None:
            self._server = await asyncio.start_server(self._handle, sock=self._listener, limit=2**20)
            started.set()

        self._loop.run_until_complete(serve())
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def stop(self) -> None:
        """Stop as a killed process does: its connections break."""

        async def close() -> None:
            if self._server is not None:
                self._server.close()
            for writer in list(self._connections):
                writer.transport.abort()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._loop.stop()

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(close(), self._loop)
            self._thread.join(5)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while request := await _read_request(reader):
                self.seen.append(request)
                if not await self._answer(request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.counts["broken"] += 1
        except asyncio.CancelledError:
            self.counts["cancelled"] += 1
        finally:
            self._tasks.discard(task)
            self._connections.discard(writer)
            writer.close()

    async def _answer(
        self, request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        url = urlsplit(request.target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        path = url.path.rsplit("/", 1)[-1]
        self.counts[path] += 1
        status, body = 200, self.name.encode()
        if path == "slow":
            await asyncio.sleep(float(query["seconds"]))
        elif path == "status":
            status = int(query["code"])
        elif path == "health":
            status = 200 if self.healthy else 503
        elif path == "echo":
            body = json.dumps(
                {"target": request.target, "headers": request.headers, "size": len(request.body)}
            ).encode()
        elif path == "die":
            return False
        elif path == "unmeasured":
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)
            await writer.drain()
            return False
        elif path == "events":
            await self._stream(writer, int(query["count"]), float(query["seconds"]))
            return True
        elif path == "websocket":
            key = (
                request.header("Sec-WebSocket-Key") or ""
            ).encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(key).digest())
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            return False
        head = f"HTTP/1.1 {status} Status\r\nContent-Length: {len(body)}\r\nX-Replica: {self.name}\r\n"
        head += f"{self.headers}\r\n"
        writer.write(head.encode() + (b"" if request.method == "HEAD" else body))
        await writer.drain()
        return True

    async def _stream(self, writer: asyncio.StreamWriter, count: int, seconds: float) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(count):
            event = f"data: {number}\n\n".encode()
            writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            await writer.drain()
            await asyncio.sleep(seconds)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _read_request(reader: asyncio.StreamReader) -> Seen | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:-2])]
    lowered = {name.lower(): value for name, value in headers}
    body = b""
    if lowered.get("transfer-encoding") == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
    elif "content-length" in lowered:
        body = await reader.readexactly(int(lowered["content-length"]))
    return Seen(method, target, headers, body)


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    port: int,
    target: str = "/",
    *,
    host: str | None = None,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
) -> Answer:
    """Send one request on a connection of its own."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'127.0.0.1:{port}'}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body and "Transfer-Encoding" not in (headers or {}):
        lines.append(f"Content-Length: {len(body)}")
    return raw(port, "\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def raw(port: int, data: bytes) -> Answer:
    """Send bytes as they are, and read the first answer."""
    answers = raw_answers(port, data)
    if not answers:
        raise ConnectionError("closed without an answer")
    return answers[0]


def raw_answers(port: int, data: bytes, silence: float = 0.1) -> list[Answer]:
    """Send bytes as they are, and read every answer.

    That is until the connection is closed, or was silent for so many seconds after an answer.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                received += part
                if _whole(received):
                    connection.settimeout(silence)
        except (TimeoutError, ConnectionError):
            pass
    return _parse(received)


def _whole(received: bytes) -> bool:
    head, _, rest = received.rpartition(b"HTTP/1.1 ")[2].partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(rest) >= int(line.split(b":")[1])
    return bool(head) and b"chunked" not in head


def _parse(received: bytes) -> list[Answer]:
    answers = []
    while received.startswith(b"HTTP/") and b"\r\n\r\n" in received:
        head, _, received = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        status = int(lines[0].split(" ")[1])
        if headers.get("transfer-encoding") == "chunked":
            body, received = received, b""
        else:
            size = int(headers.get("content-length", 0 if status in (101, 204, 304) else len(received)))
            body, received = received[:size], received[size:]
        answers.append(Answer(status, headers, body))
    return answers


@dataclass
class Load:
    """Keep-alive and one-shot clients that go on until they are told to stop.

    A connection is closed when the server asks for it, and only then: everything else is a failure.
    """

    port: int
    paths: tuple[str, ...] = ("/", "/slow?seconds=0.01")
    clients: int = 8
    host: str = "127.0.0.1"
    headers: str = ""
    tls: ssl.SSLContext | None = None
    address: str = "127.0.0.1"
    done: int = 0
    failures: list[str] = field(default_factory=list)
    replicas: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Load:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        wait_until(lambda: self.done > self.clients)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        clients: list[Coroutine[Any, Any, None]] = [self._client(index) for index in range(self.clients)]
        await asyncio.gather(*clients)

    async def _client(self, index: int) -> None:
        method, keep = ("POST" if index % 2 else "GET"), index % 4 < 2
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        number = index
        while not self._stop.is_set():
            number += 1
            path = self.paths[number % len(self.paths)]
            try:
                if connection is None:
                    name = self.host if self.tls else None
                    connection = await asyncio.open_connection(
                        self.address, self.port, ssl=self.tls, server_hostname=name
                    )
                close = await asyncio.wait_for(self._once(*connection, method, path, keep), 20)
            except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.failures.append(f"{method} {path}: {type(error).__name__}: {error}")
                close = True
            if close and connection is not None:
                connection[1].close()
                connection = None
        if connection is not None:
            connection[1].close()

    async def _once(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, keep: bool
    ) -> bool:
        body = b"x" * 500 if method == "POST" else b""
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(body)}\r\n{self.headers}"
            f"{'' if keep else 'Connection: close' + chr(13) + chr(10)}\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        await reader.readexactly(int(headers["content-length"]))
        status = int(head[0].split(" ")[1])
        if status != 200:
            self.failures.append(f"{method} {path}: {status}")
        self.done += 1
        self.replicas[headers.get("x-replica", "")] += 1
        return not keep or headers.get("connection") == "close"
