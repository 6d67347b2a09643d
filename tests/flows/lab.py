"""Three hosts for replicas and one for a gateway, as a user has them: reached over SSH, known to Prefect."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from tests.gateways.hosts import traces
from tests.polling import wait_until
from tests.testbed.host import Host
from tests.testbed.images import load_image
from tests.testbed.testbed import Testbed

NETWORK = "10.78.11.0/24"
FLEET = "lab"
GATEWAY = "edge"


class Lab:
    """The hosts, and the configurations that name them.

    Args:
        testbed: Where they are.
    """

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        *self.hosts, self.edge = testbed.hosts(
            "lab-1", "lab-2", "lab-3", "lab-edge", internal_network=NETWORK
        )
        for host in self.hosts:
            load_image(host, "app")
        load_image(self.edge, "haproxy")

    @property
    def all(self) -> Sequence[Host]:
        """Every host."""
        return [*self.hosts, self.edge]

    def named(self, name: str) -> Host:
        """The host that a replica or a message names by its address."""
        return next(host for host in self.all if host.address == name)

    def member(self, host: Host, **keys: Any) -> dict[str, Any]:
        """A host, as a fleet or a gateway names it."""
        return {
            "hostname": host.address,
            "user": "root",
            "identity_file": str(host.identity_file),
            "host_key": host.fingerprint,
            **keys,
        }

    def fleet(self, *hosts: Host, network: bool = True, name: str = FLEET) -> dict[str, Any]:
        """A fleet of the hosts, all three if none is given, with or without their private network."""
        config = {"hosts": [self.member(host) for host in hosts or self.hosts]}
        return {
            "type": "fleet",
            "name": name,
            "ssh_config": {**config, "network": NETWORK} if network else config,
        }

    def gateway(self, *, network: bool = True, name: str = GATEWAY, **keys: Any) -> dict[str, Any]:
        """A gateway on the fourth host."""
        host = self.member(self.edge)
        if network:
            host["internal_ip"] = self.edge.internal_address
            keys["network"] = NETWORK
        return {"type": "gateway", "name": name, "backend": "ssh", "host": host, **keys}

    def service(self, name: str, replicas: int = 3, **keys: Any) -> dict[str, Any]:
        """A service of the testbed's application."""
        return {
            "type": "service",
            "name": name,
            "image": "testbed/app:1",
            "port": 8000,
            "replicas": replicas,
            "auth": False,
            "probes": [{"type": "http", "url": "/health", "interval": "1s"}],
            **keys,
        }

    def traces(self) -> dict[str, dict[str, object]]:
        """Everything that a service, a gateway or a tunnel could leave behind, host by host."""
        return {host.name: _traces(host) for host in self.all if host.running}

    @staticmethod
    def differences(
        before: dict[str, dict[str, object]], after: dict[str, dict[str, object]]
    ) -> dict[str, tuple[object, object]]:
        """What has changed between two looks at all traces."""
        return {
            f"{host}: {kind}": (found, after[host][kind])
            for host, kinds in before.items()
            for kind, found in kinds.items()
            if found != after[host][kind]
        }

    def logins(self) -> dict[str, int]:
        """How many SSH connections each host has let in since it was made."""
        count = ["sh", "-c", "grep -c 'Accepted publickey' /var/log/sshd.log || true"]
        return {host.name: int(host.check(count)) for host in self.all if host.running}

    def clear(self) -> None:
        """Take down whatever a failed test has left, so that the next one begins as it should."""
        script = """
            docker ps -aq | xargs -r docker rm -f -v >/dev/null
            rm -rf /var/lib/prefect-dstack /run/prefect-dstack*
            sed -i '/prefect-dstack-tunnel:/d' /root/.ssh/authorized_keys
        """
        for host in self.all:
            host.check(["sh", "-c", script])

    def heal(self) -> None:
        """Bring back every host and every connection."""
        for host in self.all:
            host.heal()
            host.rejoin(self.testbed)
            for other in self.all:
                if other is not host:
                    host.rejoin(other)
            if not host.running:
                host.start()
            elif not host.exists_process("^sshd: .*listener"):
                host.restart_ssh()


def _traces(host: Host) -> dict[str, object]:
    files = "find /run /tmp /var/lib/prefect-dstack /root -name '*prefect-dstack*' 2>/dev/null | sort; true"
    return {**traces(host), "everything": host.check(["sh", "-c", files])}


class Requests:
    """Asks a gateway for one service again and again; a context manager.

    Args:
        address: Of the gateway.
        port: Of the service there.
        path: What to ask for; idempotent.

    Attributes:
        failures: What was not answered with 200, in words.
        replicas: How many answers each replica gave.
    """

    def __init__(self, address: str, port: int = 80, path: str = "/", threads: int = 4) -> None:
        self.address, self.port, self.path = address, port, path
        self.failures: list[str] = []
        self.replicas: Counter[str] = Counter()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def answers(self) -> int:
        """How many were answered with 200."""
        return sum(self.replicas.values())

    def wait_for_more(self, count: int = 50) -> None:
        """Return when so many more have been answered."""
        wanted = self.answers() + count
        wait_until(lambda: self.answers() >= wanted, 60, f"{count} more answers")

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=20)
        while not self._done.wait(0.01):
            try:
                connection.request("GET", self.path)
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                connection.close()
                continue
            if response.status == 200:
                self.replicas[json.loads(body)["hostname"]] += 1
            else:
                self.failures.append(f"{response.status} {body[:200]!r}")
        connection.close()


def answer(address: str, port: int = 80, path: str = "/", timeout: float = 5) -> dict[str, Any] | None:
    """The JSON that a gateway answers; None if it does not answer 200."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        return json.loads(body) if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
