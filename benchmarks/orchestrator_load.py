"""What redeploys cost the Prefect server: requests to its API, and rows in its database.

A service is redeployed again and again through a server that writes down each request. What a redeploy costs
must not depend on how many came before it. From the root of the repository:

    python -m benchmarks.orchestrator_load                  # 100 redeploys, about five minutes
    python -m benchmarks.orchestrator_load --redeploys 20
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sqlite3
import statistics
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.prefect_server import PrefectServer

APP = Path(__file__).parents[1] / "examples" / "hello" / "app.py"
SERVICE = "counted"
REQUEST = re.compile(r'"[A-Z]+ (/api/[^ ?"]*)[^"]*" \d{3}')
IDENTIFIER = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
# What the server writes on its own account, however little happens.
OWN_TABLES = re.compile(r"sqlite_|alembic|.*_(heartbeat|worker)|docket")


@dataclass(frozen=True)
class Reading:
    """What there is so far.

    Attributes:
        requests: How often each path of the API was asked.
        rows: How many rows each table has.
    """

    requests: Counter[str]
    rows: Counter[str]

    def since(self, earlier: Reading) -> Reading:
        """Return what has come to it since."""
        rows = Counter({table: count - earlier.rows[table] for table, count in self.rows.items()})
        return Reading(self.requests - earlier.requests, rows)


def read(server: PrefectServer) -> Reading:
    """Read the log and the database of a server."""
    paths = REQUEST.findall(server.log.read_text())
    with contextlib.closing(sqlite3.connect(server.directory / "prefect.db", timeout=60)) as database:
        names = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        rows = {
            name: database.execute(f'select count(*) from "{name}"').fetchone()[0]
            for name in names
            if not OWN_TABLES.match(name)
        }
    return Reading(Counter(IDENTIFIER.sub("ID", path) for path in paths), Counter(rows))


def deploy() -> None:
    """Deploy a new revision of the service."""
    from prefect_dstack import deploy_service

    commands = [f"exec python3 {APP}"]
    probes = [{"type": "http", "url": "/health", "interval": "1s"}]
    configuration = {"type": "service", "name": SERVICE, "port": 8000, "commands": commands, "probes": probes}
    deploy_service(configuration, force=True)


def report(costs: list[Reading]) -> None:
    """Print what the first and the last redeploys have cost."""
    tenth = max(1, len(costs) // 10)
    first, last = costs[:tenth], costs[-tenth:]
    print(f"{'median of':<34}{f'first {tenth}':>12}{f'last {tenth}':>12}")
    for what, of in (("requests", "requests"), ("rows", "rows")):
        before, after = (
            statistics.median(sum(getattr(cost, of).values()) for cost in part) for part in (first, last)
        )
        print(f"{what:<34}{before:>12.0f}{after:>12.0f}   x {after / before:.2f}")
    for of in ("requests", "rows"):
        print(f"\n{of} of the last {tenth} redeploys, each")
        summed: Counter[str] = sum((getattr(cost, of) for cost in last), Counter())
        for name, count in summed.most_common(12):
            print(f"  {name:<44}{count / tenth:>8.1f}")


def main() -> None:
    """Redeploy, count, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redeploys", type=int, default=100)
    redeploys = parser.parse_args().redeploys
    with tempfile.TemporaryDirectory() as directory:
        server = PrefectServer(Path(directory) / "server", {"PREFECT_LOGGING_SERVER_LEVEL": "INFO"})
        server.environment["PREFECT_SERVER_LOGGING_LEVEL"] = "INFO"
        server.start()
        os.environ |= {
            "PREFECT_API_URL": server.url,
            "PREFECT_DSTACK_HOME": f"{directory}/home",
            "PREFECT_LOGGING_LEVEL": "ERROR",
        }
        from prefect_dstack import delete_service, stop_service

        costs = []
        try:
            deploy()
            before = read(server)
            for _ in range(redeploys):
                deploy()
                after = read(server)
                costs.append(after.since(before))
                before = after
        finally:
            stop_service(SERVICE)
            delete_service(SERVICE)
            server.stop()
    report(costs)


if __name__ == "__main__":
    main()
