"""How a deployment grows with its replicas: 1, 3, 10 and 30 on three hosts, behind a gateway on a fourth.

For each number: the time from the call to the endpoint, and how many SSH connections each host has let in
meanwhile, counted in the log of its SSH server. From the root of the repository, as root for the hosts:

    python -m benchmarks.fan_out                        # about five minutes
    python -m benchmarks.fan_out --replicas 1 3 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.flows.lab import GATEWAY, Lab
from tests.prefect_server import PrefectServer
from tests.testbed.testbed import Testbed


def measure(lab: Lab, replicas: int) -> tuple[float, dict[str, int]]:
    """Deploy so many replicas, and stop them again.

    Args:
        lab: The hosts.
        replicas: How many.

    Returns:
        The seconds of the deployment, and the SSH connections of each host.
    """
    from prefect_dstack import deploy_service, stop_service

    name = f"fan-{replicas}"
    before, began = lab.logins(), time.monotonic()
    endpoint = deploy_service(lab.service(name, replicas), force=True)
    seconds = time.monotonic() - began
    after = lab.logins()
    if len(endpoint.replicas) != replicas:
        raise RuntimeError(f"{len(endpoint.replicas)} replicas instead of {replicas}")
    stop_service(name)
    return seconds, {host: after[host] - before[host] for host in after}


def table(results: dict[int, list[tuple[float, dict[str, int]]]]) -> str:
    """Write the results as a table.

    Args:
        results: What `measure` has given, by the number of replicas.

    Returns:
        Markdown.
    """
    lines = [
        "| replicas | seconds | x of one replica | SSH connections per host |",
        "| ---: | ---: | ---: | :--- |",
    ]
    one = min(seconds for seconds, _ in results[min(results)])
    for replicas, rounds in results.items():
        seconds = statistics.median(taken for taken, _ in rounds)
        logins = ", ".join(sorted({str(count) for _, hosts in rounds for count in hosts.values()}))
        lines.append(f"| {replicas} | {seconds:.1f} | {seconds / one:.2f} | {logins} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 3, 10, 30], help="numbers of replicas")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prefect-dstack-benchmark-") as name, Testbed() as testbed:
        server = PrefectServer(Path(name) / "server")
        server.start()
        os.environ |= {
            "HOME": name,
            "PREFECT_API_URL": server.url,
            "PREFECT_DSTACK_HOME": f"{name}/home",
            "PREFECT_LOGGING_LEVEL": "ERROR",
        }
        try:
            from prefect_dstack import create_gateway, delete_gateway
            from prefect_dstack.flows.fleets import apply_fleet

            lab = Lab(testbed)
            apply_fleet(lab.fleet())
            create_gateway(lab.gateway())
            measure(lab, 1)
            results: dict[int, list[tuple[float, dict[str, int]]]] = {}
            for replicas in arguments.replicas:
                for _ in range(arguments.rounds):
                    seconds, logins = measure(lab, replicas)
                    print(f"{replicas} replicas: {seconds:.1f} s, SSH connections: {logins}", flush=True)
                    results.setdefault(replicas, []).append((seconds, logins))
            print(table(results))
            delete_gateway(GATEWAY)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
