"""Load on a service, from a process of its own: what is asked, what comes back, and how long it takes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import multiprocessing
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT = 10.0
BODY = os.urandom(8 * 1024)


@dataclass(frozen=True)
class Request:
    """One request, as its client saw it.

    Attributes:
        start: When it was sent, by the monotonic clock.
        seconds: How long it took until its whole answer was there.
        failure: What went wrong; empty if nothing did.
    """

    start: float
    seconds: float
    failure: str = ""


@dataclass
class Report:
    """What a load has seen so far."""

    requests: list[Request] = field(default_factory=list)
    streams: Counter[str] = field(default_factory=Counter)

    @property
    def failures(self) -> Counter[str]:
        """The failures, by what went wrong."""
        return Counter(request.failure for request in self.requests if request.failure)


class Load:
    """Clients with and without keep-alive, some of which post bodies, at a steady rate.

    Args:
        port: Where the service answers, on 127.0.0.1.
        rate: Requests per second, of all clients together.
        cpus: Where they run.
        clients: How many clients of each kind.
    """

    def __init__(self, port: int, rate: float, cpus: set[int], clients: int = 4) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, port, rate, cpus, clients), daemon=True)
        self._process.start()
        self._pipe.recv()

    def open_streams(self, seconds: float) -> None:
        """Open an event stream and a websocket that last so long; returns when both have begun."""
        self._ask("streams", seconds)

    def report(self) -> Report:
        """Tell what has happened since the last report."""
        report = self._ask("report", None)
        assert isinstance(report, Report)
        return report

    def stop(self) -> Report:
        """Wait for the streams, end all clients, and tell what has happened since the last report."""
        report = self._ask("stop", None)
        assert isinstance(report, Report)
        self._process.join()
        return report

    def _ask(self, command: str, argument: Any) -> object:
        self._pipe.send((command, argument))
        answer: object = self._pipe.recv()
        return answer


def quantile(requests: Sequence[Request], share: float) -> float:
    """Give a quantile of how long requests took, in milliseconds."""
    times = sorted(request.seconds for request in requests)
    return 1000 * times[min(int(share * len(times)), len(times) - 1)] if times else float("nan")


def _run(pipe: Connection, port: int, rate: float, cpus: set[int], clients: int) -> None:
    os.sched_setaffinity(0, cpus)
    asyncio.run(_serve(pipe, port, rate, clients))


async def _serve(pipe: Connection, port: int, rate: float, clients: int) -> None:
    report = Report()
    kinds: list[tuple[str, bool]] = [("GET", True), ("GET", False), ("POST", True), ("POST", False)]
    every = len(kinds) * clients / rate
    tasks = [
        asyncio.create_task(_client(port, method, keep_alive, every, lambda it: report.requests.append(it)))
        for method, keep_alive in kinds
        for _ in range(clients)
    ]
    streams: list[asyncio.Task[str]] = []
    pipe.send("ready")
    while True:
        command, argument = await asyncio.to_thread(pipe.recv)
        if command == "streams":
            begun = [asyncio.Event(), asyncio.Event()]
            fresh = [
                asyncio.create_task(_events(port, argument, begun[0])),
                asyncio.create_task(_websocket(port, argument, begun[1])),
            ]
            for task in fresh:
                task.add_done_callback(lambda done: report.streams.update([done.result()]))
            streams += fresh
            for started, task in zip(begun, fresh, strict=True):
                waiting = asyncio.create_task(started.wait())
                await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            pipe.send("begun")
            continue
        if command == "stop":
            await asyncio.gather(*streams)
            for client in tasks:
                client.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        copy = Report(list(report.requests), Counter(report.streams))
        report.requests.clear()
        report.streams.clear()
        pipe.send(copy)
        if command == "stop":
            return


async def _client(
    port: int, method: str, keep_alive: bool, every: float, note: Callable[[Request], None]
) -> None:
    """Ask again and again; a connection that was closed while idle is opened anew, as any client does."""
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    due = time.monotonic() + every * secrets.randbelow(1000) / 1000
    while True:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due = max(due + every, time.monotonic() - 1)
        start, failure, reusable = time.monotonic(), "", False
        try:
            async with _timeout(TIMEOUT):
                if writer is None or reader is None or reader.at_eof():
                    if writer is not None:
                        writer.close()
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                failure, reusable = await _exchange(reader, writer, method, keep_alive)
        except (TimeoutError, OSError, EOFError) as error:
            failure = f"{method}: {type(error).__name__}"
        note(Request(start, time.monotonic() - start, failure))
        if not reusable and writer is not None:
            writer.close()
            reader = writer = None


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, keep_alive: bool
) -> tuple[str, bool]:
    body = BODY if method == "POST" else b""
    path = "/echo" if method == "POST" else "/"
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [] if keep_alive else ["Connection: close"]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    status, headers = await _head(reader)
    answer = await reader.readexactly(int(headers["content-length"]))
    failure = f"{method}: {status}" if status != 200 else ""
    if not failure and method == "POST" and answer != body:
        failure = "POST: another body came back"
    return failure, keep_alive and headers.get("connection", "").lower() != "close"


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in rest if line)
    return int(first.split()[1]), {name.lower(): value for name, value in headers.items()}


async def _events(port: int, seconds: float, begun: asyncio.Event) -> str:
    """Read an event stream to its end."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            writer.write(f"GET /sse?seconds={seconds:g} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            status, _ = await _head(reader)
            received = await reader.readuntil(b"\n\n")
            begun.set()
            while b"event: end" not in received:
                async with _timeout(TIMEOUT):
                    received = received[-64:] + await reader.read(65536)
                if reader.at_eof() and b"event: end" not in received:
                    return "event stream: cut"
    except (TimeoutError, OSError, EOFError) as error:
        return f"event stream: {type(error).__name__}"
    return "whole" if status == 200 else f"event stream: {status}"


async def _websocket(port: int, seconds: float, begun: asyncio.Event) -> str:
    """Send messages, and compare what comes back, until the time is up."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        "GET /ws HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    ]
    end = time.monotonic() + seconds
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
            status, _ = await _head(reader)
            while status == 101 and time.monotonic() < end:
                message = secrets.token_hex(30).encode()
                writer.write(bytes([0x81, 0x80 | len(message)]) + bytes(4) + message)
                async with _timeout(TIMEOUT):
                    if await reader.readexactly(2 + len(message)) != bytes([0x81, len(message)]) + message:
                        return "websocket: another message came back"
                begun.set()
                await asyncio.sleep(0.2)
    except (TimeoutError, OSError, EOFError) as error:
        return f"websocket: {type(error).__name__}"
    return "whole" if status == 101 else f"websocket: {status}"


@contextlib.asynccontextmanager
async def _timeout(seconds: float) -> Any:
    """What `asyncio.timeout` does, which Python 3.10 lacks."""
    task = asyncio.current_task()
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        if task is not None:
            task.cancel()

    handle = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        yield
    except asyncio.CancelledError:
        if expired:
            raise TimeoutError from None
        raise
    finally:
        handle.cancel()
