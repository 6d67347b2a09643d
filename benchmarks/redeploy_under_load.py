"""How many requests are lost while a service is redeployed, again and again, under load.

Clients with and without keep-alive ask and post bodies at a steady rate, an event stream and a websocket
last a minute, and the service is redeployed meanwhile: by prefect-dstack, and by a rolling script over nginx,
in turns. Every request must be answered with 200 and, if it had a body, with that body. From the
root of the repository, as root for the containers:

    python -m benchmarks.redeploy_under_load                       # 50 redeploys each, about half an hour
    python -m benchmarks.redeploy_under_load --redeploys 10 --stream-seconds 15 --runtime process
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.contenders import IMAGE, Contender, contenders
from benchmarks.load import Load, Request, quantile
from prefect_dstack.api import connect, stop_local_server
from tests.testbed.engine import local_engine
from tests.testbed.images import load_image


@dataclass
class Result:
    """What one contender has shown.

    Attributes:
        redeploys: How often it was redeployed.
        quiet: Requests while nothing changed.
        during: Requests while it was redeployed.
        streams: How event streams and websockets ended.
        seconds: How long the redeploys took in which no stream was waited for.
    """

    redeploys: int = 0
    quiet: list[Request] = field(default_factory=list)
    during: list[Request] = field(default_factory=list)
    streams: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    @property
    def requests(self) -> list[Request]:
        """All of them."""
        return [*self.quiet, *self.during]

    @property
    def failures(self) -> Counter[str]:
        """What went wrong, and how often."""
        return Counter(request.failure for request in self.requests if request.failure)


def run_round(contender: Contender, result: Result, arguments: argparse.Namespace, count: int) -> None:
    """Measure quiet time, then so many redeploys; streams are open during the first of them."""
    load = Load(contender.port, arguments.rate, arguments.cpus)
    time.sleep(1)  # until its clients have connected
    load.report()
    time.sleep(arguments.quiet)
    result.quiet += load.report().requests
    for number in range(count):
        if number == 0:
            load.open_streams(arguments.stream_seconds)
        start = time.monotonic()
        contender.redeploy()
        if number > 0:
            result.seconds.append(time.monotonic() - start)
        result.redeploys += 1
        seen = load.report()
        result.during += seen.requests
        result.streams += seen.streams
        for failure, times in seen.failures.items():
            print(f"  {contender.name}: version {contender.version}: {times} x {failure}", flush=True)
    end = load.stop()
    result.quiet += end.requests
    result.streams += end.streams


def table(results: dict[str, Result]) -> str:
    """Write the table of the README."""
    rows: dict[str, list[str]] = {}

    def add(row: str, value: str) -> None:
        rows.setdefault(row, []).append(value)

    for result in results.values():
        whole, streams = result.streams["whole"], sum(result.streams.values())
        add("redeploys", str(result.redeploys))
        add("requests", f"{len(result.requests):,}")
        add("failed", f"**{sum(result.failures.values())}**")
        for share in (0.5, 0.99):
            quiet, during = quantile(result.quiet, share), quantile(result.during, share)
            add(
                f"p{100 * share:.0f}, quiet → during redeploys",
                f"{quiet:.1f} → {during:.1f} ms ({during / quiet:.1f} times)",
            )
        add("event streams and websockets broken", f"{streams - whole} of {streams}")
        seconds = sorted(result.seconds)
        add("a redeploy takes (median)", f"{seconds[len(seconds) // 2]:.1f} s" if seconds else "-")
    lines = [["", *results], ["---", *["---:"] * len(results)], *([row, *them] for row, them in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def keep_apart(directory: Path, cpus: set[int]) -> None:
    """Give this process and the Prefect server the CPUs that are left; gateways and replicas get theirs."""
    deploying = os.sched_getaffinity(0) - cpus
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = [process.cwd(), *process.cmdline()]
            prefect = "prefect.server" in " ".join(words) or "prefect" in words
            if process.pid == os.getpid() or prefect:
                wanted = deploying
            elif any(word.startswith(str(directory)) for word in words):
                wanted = cpus
            else:
                continue
            for thread in process.threads():
                os.sched_setaffinity(thread.id, wanted)


def measure(runtime: str, arguments: argparse.Namespace, directory: Path) -> dict[str, Result]:
    """Let both contenders take turns."""
    with contextlib.ExitStack() as stack:
        engine = None
        if runtime == "docker":
            engine = stack.enter_context(local_engine())
            os.environ["DOCKER_HOST"] = engine.url
            assert load_image(engine, "app") == IMAGE
        both = stack.enter_context(contenders(runtime, directory, arguments.cpus, engine))
        if arguments.apart:
            keep_apart(directory.parent, arguments.cpus)
        results = {contender.name: Result() for contender in both}
        left = arguments.redeploys
        while left > 0:
            count = min(arguments.turn, left)
            for contender in both:
                run_round(contender, results[contender.name], arguments, count)
                done = results[contender.name]
                print(
                    f"{runtime}: {contender.name}: {done.redeploys} redeploys, "
                    f"{len(done.requests):,} requests, "
                    f"{sum(done.failures.values())} failed",
                    flush=True,
                )
            left -= count
    return results


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--redeploys", type=int, default=50, help="of each contender")
    parser.add_argument("--turn", type=int, default=10, help="redeploys before it is the other's turn")
    parser.add_argument("--rate", type=float, default=600, help="requests per second")
    parser.add_argument("--quiet", type=float, default=10, help="seconds of quiet before each turn")
    parser.add_argument("--stream-seconds", type=float, default=60, help="how long streams last")
    parser.add_argument("--runtime", choices=["process", "docker", "both"], default="both")
    parser.add_argument(
        "--apart",
        action="store_true",
        help="leave one CPU to what deploys, as if that were another machine; for processes",
    )
    arguments = parser.parse_args()
    arguments.cpus = os.sched_getaffinity(0)
    if arguments.apart:
        arguments.cpus -= {min(arguments.cpus)}
        arguments.runtime = "process"
    with tempfile.TemporaryDirectory(prefix="prefect-dstack-benchmark-") as name:
        directory = Path(name)
        os.environ |= {
            "HOME": name,
            "PREFECT_HOME": str(directory / "prefect"),
            "PREFECT_DSTACK_HOME": str(directory / "home"),
            "PREFECT_DSTACK_LOCAL_GATEWAY_PORT": "18600",
            "PREFECT_LOGGING_LEVEL": "ERROR",
        }
        logging.disable(logging.WARNING)
        try:
            connect(print)
            for runtime in ["process", "docker"] if arguments.runtime == "both" else [arguments.runtime]:
                place = directory / runtime
                place.mkdir()
                results = measure(runtime, arguments, place)
                print(f"\n{runtime}, {arguments.rate:g} requests/s:\n\n{table(results)}\n", flush=True)
                for contender, result in results.items():
                    for failure, times in (result.failures + result.streams).items():
                        if failure != "whole":
                            print(f"{contender}: {times} x {failure}", flush=True)
        finally:
            stop_local_server()


if __name__ == "__main__":
    main()
