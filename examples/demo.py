"""Deploy `hello`, then replace it under load and count the requests that fail: `python examples/demo.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import httpx

PROGRAM = Path(sys.executable).with_name("prefect-dstack")
HELLO = str(Path(__file__).with_name("hello.dstack.yml"))
CLIENTS = 4
PAUSE = 0.005  # seconds between two requests of one client


def main() -> int:
    """Return 0 if no request failed."""
    run("apply", HELLO, "-y")
    url = subprocess.check_output([PROGRAM, "url", "hello"], text=True).strip()
    print(f"\n==> curl {url}\n{httpx.get(url).text}")

    print(f"{CLIENTS} clients send requests while new replicas replace the old ones:\n")
    with load(url) as answers:
        run("apply", HELLO, "-y", "--force")

    total = sum(answers.values())
    failed = sum(count for answer, count in answers.items() if not answer.startswith("revision"))
    print(f"\n{total} requests, {failed} failed")
    for answer, count in sorted(answers.items()):
        print(f"  {count} answered by {answer}" if answer.startswith("revision") else f"  {count} {answer}")
    print()
    run("ps")
    print(f"\nhello keeps running. Stop it with: {os.path.relpath(PROGRAM)} stop hello -y")
    return 1 if failed else 0


def run(*arguments: str) -> None:
    """Run a command of prefect-dstack, and show it."""
    print("==> prefect-dstack", *(Path(it).name if it == HELLO else it for it in arguments), flush=True)
    subprocess.run([PROGRAM, *arguments], check=True)


@contextmanager
def load(url: str) -> Iterator[Counter[str]]:
    """Send requests from several clients, and count the answers by revision or error."""
    over = Event()
    answers: Counter[str] = Counter()

    def client() -> Counter[str]:
        counted: Counter[str] = Counter()
        with httpx.Client(timeout=10) as http:
            while not over.wait(PAUSE):
                try:
                    response = http.get(url)
                    response.raise_for_status()
                    counted[f"revision {response.json()['revision']}"] += 1
                except httpx.HTTPError as error:
                    counted[f"failed: {error!r}"] += 1
        return counted

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client) for _ in range(CLIENTS)]
        try:
            yield answers
        finally:
            over.set()
            for one in clients:
                answers.update(one.result())


if __name__ == "__main__":
    sys.exit(main())
