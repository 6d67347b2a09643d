"""How long commands take, as ratios to the import of Prefect's client, which all that ask the API share.

    python benchmarks/cli.py [--before PROGRAM] [--rounds 7] [SERVICE]

Asks the Prefect API that is configured, so that every command has something to show; SERVICE is one that
serves. `--before` is the `prefect-dstack` of another installation, measured in turn with this one. Prints the
median CPU time and wall time of each command, and their ratios to the import. Figures of one run can be
compared with each other, and with nothing else.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

PROGRAM = Path(sys.executable).with_name("prefect-dstack")
YARDSTICK = "import prefect.client.orchestration"
COMPLETION = {
    "_PREFECT_DSTACK_COMPLETE": "complete_bash",
    "COMP_WORDS": "prefect-dstack st",
    "COMP_CWORD": "1",
}


def measure(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """The CPU time and the wall time of a command, in seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall


def commands(program: str, service: str | None) -> dict[str, tuple[list[str], dict[str, str]]]:
    """What is measured of one installation, by name."""
    found: dict[str, tuple[list[str], dict[str, str]]] = {
        "--help": ([program, "--help"], {}),
        "completion": ([program], COMPLETION),
        "ps": ([program, "ps"], {}),
        # Refused once it has looked at the record: the rest is the time of the flow.
        "stop": ([program, "stop", "there-is-no-such-service", "-y"], {}),
    }
    if service is not None:
        for name in ("logs", "history"):
            found[name] = ([program, name, service], {})
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("service", nargs="?")
    parser.add_argument("--before", help="the prefect-dstack of another installation")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    installations = {"now": str(PROGRAM)} | ({"before": options.before} if options.before else {})
    jobs: dict[tuple[str, str], tuple[list[str], dict[str, str]]] = {
        ("", YARDSTICK): ([sys.executable, "-c", YARDSTICK], {})
    }
    for label, program in installations.items():
        jobs |= {(label, name): job for name, job in commands(program, options.service).items()}
    times: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for number in range(options.rounds + 1):
        for key, job in jobs.items():
            taken = measure(*job)
            if number:  # the first round fills the caches of the disk
                times[key].append(taken)
    middle = {key: [median(column) for column in zip(*taken, strict=True)] for key, taken in times.items()}
    cpu, wall = middle["", YARDSTICK]
    print(f"{'':8} {'command':38} {'CPU s':>7} {'ratio':>6} {'wall s':>7} {'ratio':>6}")
    for (label, name), (its_cpu, its_wall) in middle.items():
        print(
            f"{label:8} {name:38} {its_cpu:7.2f} {its_cpu / cpu:6.2f} {its_wall:7.2f} {its_wall / wall:6.2f}"
        )


if __name__ == "__main__":
    main()
