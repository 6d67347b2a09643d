"""What clients notice of a service that follows its load, and of one that waits five minutes before it does.

Two services with the same application get the same requests, a steady rate that rises from 5 a second to 100
and falls again: one that adds replicas within seconds, and one that adds them after 300 s and removes them
after 1,200 s, as SkyServe does unless it is told otherwise
(https://docs.skypilot.co/en/latest/serving/autoscaling.html). Event streams are open all the time. The
controller is killed as the load rises, in the middle, and as replicas are removed. From the root of the
repository:

    python -m benchmarks.autoscaling                  # 100,000 requests to each service, twenty minutes
    python -m benchmarks.autoscaling --high 60
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.served import served

LOW, HIGH = 5, 100
SECONDS_EACH = 0.08
"""A replica works on one request at a time, for so long: it can answer twelve a second."""
TIMEOUT = 60.0
STREAM_SECONDS, STREAM_EVERY = 60.0, 20.0
SCALING = {"metric": "rps", "target": 10}
SERVICES = {
    "quick": {**SCALING, "window": "5s", "scale_up_delay": "1s", "scale_down_delay": "30s"},
    "slow": {**SCALING, "window": "60s", "scale_up_delay": "300s", "scale_down_delay": "1200s"},
}
# One request after another; `/stream` does not take a turn.
APP = f"""
import asyncio, os
NAME = os.environ["PREFECT_DSTACK_REPLICA"].rpartition("/")[2].encode()
HEAD = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n"
async def answer(reader, writer):
    asked = await reader.readuntil(b"\\r\\n\\r\\n")
    if asked.startswith(b"GET /stream"):
        writer.write(HEAD + b"\\r\\n")
        for _ in range({STREAM_SECONDS:.0f}):
            writer.write(b"on\\n")
            await writer.drain()
            await asyncio.sleep(1)
        writer.write(b"end\\n")
    else:
        async with turn:
            if not writer.is_closing():
                await asyncio.sleep({SECONDS_EACH})
        writer.write(HEAD + b"Content-Length: %d\\r\\n\\r\\n%s" % (len(NAME), NAME))
    await writer.drain()
    writer.close()
async def main():
    global turn
    turn = asyncio.Lock()
    server = await asyncio.start_server(answer, "127.0.0.1", int(os.environ["PORT"]), backlog=1000)
    await server.serve_forever()
asyncio.run(main())
"""


@dataclass
class Result:
    """What the clients of one service have seen.

    Attributes:
        seconds: How long each request took.
        failures: What went wrong, and how often.
        streams: How event streams ended.
        first: When each replica answered first, in seconds since the load rose.
    """

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    first: dict[str, float] = field(default_factory=dict)

    def quantile(self, share: float) -> float:
        """Seconds within which a share of the requests were answered."""
        return sorted(self.seconds)[min(int(share * len(self.seconds)), len(self.seconds) - 1)]

    def slower(self, seconds: float) -> int:
        """How many requests took longer, or failed."""
        return sum(it > seconds for it in self.seconds) + self.failures.total()


class Clients:
    """Clients of one service that do not wait for each other's answers.

    Args:
        url: The service.
    """

    def __init__(self, url: str) -> None:
        asked = urlsplit(url)
        self._address = asked.hostname or "127.0.0.1", asked.port or 80
        self.result = Result()
        self.rose = float("inf")
        self._open: set[asyncio.Task[None]] = set()

    def request(self) -> None:
        """Send one request, whatever became of those before."""
        self._start(self._request())

    def stream(self) -> None:
        """Open one event stream."""
        self._start(self._stream())

    async def finish(self) -> None:
        """Wait for what is open."""
        while self._open:
            await asyncio.wait(self._open)

    def _start(self, what: Any) -> None:
        task = asyncio.create_task(what)
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _request(self) -> None:
        began = time.monotonic()
        try:
            answer = await asyncio.wait_for(self._ask("/"), TIMEOUT)
        except (TimeoutError, OSError, EOFError) as error:
            self.result.failures[type(error).__name__] += 1
            return
        status, body = answer[9:12].decode(), answer.partition(b"\r\n\r\n")[2].decode()
        if status != "200":
            self.result.failures[status] += 1
            return
        now = time.monotonic()
        self.result.seconds.append(now - began)
        if now > self.rose:
            self.result.first.setdefault(body, now - self.rose)

    async def _stream(self) -> None:
        try:
            answer = await asyncio.wait_for(self._ask("/stream"), STREAM_SECONDS + TIMEOUT)
            status = answer[9:12].decode()
            end = "whole" if answer.endswith(b"end\n") else "cut" if status == "200" else status
        except (TimeoutError, OSError, EOFError) as error:
            end = type(error).__name__
        self.result.streams[end] += 1

    async def _ask(self, path: str) -> bytes:
        reader, writer = await asyncio.open_connection(*self._address)
        with contextlib.closing(writer):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return await reader.read()


@dataclass(frozen=True)
class Trace:
    """How many requests a second there are, and when the controller is killed, in seconds since it began."""

    low: float
    high: float

    def rate(self, at: float) -> int:
        """Requests a second."""
        return HIGH if self.low <= at < self.low + self.high else LOW

    @property
    def end(self) -> float:
        """When it is over; by then the replicas of the quick one are gone."""
        return self.low + self.high + 120

    @property
    def kills(self) -> list[float]:
        """When the controller is killed."""
        return [self.low + 3, self.low + self.high / 2, self.low + self.high + 32]


async def play(trace: Trace, clients: list[Clients]) -> int:
    """Send the requests of a trace to all services alike; returns how often the controller was killed."""
    began = time.monotonic()
    for one in clients:
        one.rose = began + trace.low
    due = stream_due = 0.0
    kills, killed = trace.kills, 0
    while due < trace.end:
        await asyncio.sleep(max(0.0, began + due - time.monotonic()))
        for one in clients:
            one.request()
            if due >= stream_due:
                one.stream()
        if due >= stream_due:
            stream_due += STREAM_EVERY
        if kills and due >= kills[0]:
            kills.pop(0)
            killed += await asyncio.to_thread(kill_controller)
        due += 1 / trace.rate(due)
    for one in clients:
        await one.finish()
    return killed


def kill_controller() -> int:
    """Kill the controller of this home; its supervisor starts another."""
    killed = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.environ().get("HOME") == os.environ["HOME"]
            if ours and process.cmdline()[1:] == ["-m", "prefect_dstack.resident.main"]:
                process.send_signal(signal.SIGKILL)
                killed += 1
    return killed


def service(name: str, app: Path) -> dict[str, Any]:
    """Return one of the services."""
    return {
        "type": "service",
        "name": name,
        "port": 8000,
        "commands": [f"exec {sys.executable} {app}"],
        "replicas": "1..16",
        "scaling": SERVICES[name],
        "max_concurrency": 4,
        "queue_timeout": "30s",
    }


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--low", type=float, default=30, help="seconds before the load rises")
    parser.add_argument("--high", type=float, default=1000, help="seconds until it falls again")
    options = parser.parse_args()
    trace = Trace(options.low, options.high)
    with served():
        from prefect_dstack import deploy_service, stop_service
        from prefect_dstack.resident.background import start_controller, stop_controller

        app = Path(os.environ["HOME"]) / "app.py"
        app.write_text(APP)
        clients = {name: Clients(deploy_service(service(name, app)).url) for name in SERVICES}
        start_controller(os.environ["PREFECT_API_URL"])
        try:
            killed = asyncio.run(play(trace, list(clients.values())))
        finally:
            stop_controller()
            for name in SERVICES:
                stop_service(name)
    results = {name: one.result for name, one in clients.items()}
    print(f"the controller was killed {killed} times\n")
    print(f"|  | {' | '.join(results)} |\n| --- |{' ---: |' * len(results)}")
    for label, value in ROWS.items():
        print(f"| {label} | {' | '.join(value(result) for result in results.values())} |")
    for name, result in results.items():
        print(f"{name}: {dict(result.failures)}, streams {dict(result.streams)}")


def _second(result: Result) -> str:
    others = sorted(result.first.values())[1:]
    return f"{others[0]:.1f} s" if others else "never"


ROWS: dict[str, Callable[[Result], str]] = {
    "requests": lambda it: f"{len(it.seconds) + it.failures.total():,}",
    "failed": lambda it: f"{it.failures.total():,}",
    "took longer than 1 s, or failed": lambda it: f"{it.slower(1):,}",
    "p50": lambda it: f"{it.quantile(0.5):.2f} s",
    "p99": lambda it: f"{it.quantile(0.99):.2f} s",
    "a second replica answers": _second,
    "replicas that answered": lambda it: str(len(it.first)),
    "event streams whole": lambda it: f"{it.streams['whole']} of {it.streams.total()}",
}


if __name__ == "__main__":
    main()
