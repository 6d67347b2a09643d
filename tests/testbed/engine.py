"""A Docker Engine for this machine itself: the one that runs, or one of our own with nothing in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker

from tests.polling import wait_until
from tests.testbed.engine_answers import engine_answers
from tests.testbed.processes import NamespacedProcess, run
from tests.testbed.slots import Slot


class LocalEngine:
    """A Docker Engine that publishes ports on this machine.

    Args:
        url: How to reach it, as in `DOCKER_HOST`.
        process: The first process of the engine's namespaces, for an engine of our own.
    """

    def __init__(self, url: str, process: NamespacedProcess | None = None) -> None:
        self.url = url
        self._process = process

    @contextmanager
    def docker(self) -> Iterator[docker.DockerClient]:
        """A client of it."""
        client = docker.DockerClient(base_url=self.url, timeout=60)
        try:
            yield client
        finally:
            client.close()

    def kill_container(self, name: str) -> None:
        """Kill the first process of a container behind the engine's back, as a crash would.

        Unlike after `docker kill`, which counts as a wish of the user's, the restart policy acts.
        """
        with self.docker() as client:
            pid = client.containers.get(name).attrs["State"]["Pid"]
        if not pid:
            raise RuntimeError(f"{name} does not run")
        if self._process is None:
            os.kill(pid, 9)
        elif self._process.run(["kill", "-9", str(pid)]).returncode:
            raise RuntimeError(f"{name}: no process {pid}")


def running_engine() -> str | None:
    """The URL of a Docker Engine that answers already: that of `DOCKER_HOST`, or the usual one.

    Only one at a unix socket is on this machine, and publishes ports on it.
    """
    url = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not url.startswith("unix://"):
        return None
    return url if engine_answers(Path(url.removeprefix("unix://"))) else None


@contextmanager
def local_engine() -> Iterator[LocalEngine]:
    """Give a Docker Engine on this machine: the running one, else one of our own, removed at the end.

    Ours leaves this machine's firewall as it is: containers reach each other and this machine, and nothing
    else. Export its `url` as `DOCKER_HOST`.
    """
    url = running_engine()
    if url is not None:
        yield LocalEngine(url)
        return
    with Slot("pd-engine") as slot:
        # A network of its own: the one that every engine takes by default may be another's.
        run(["ip", "link", "add", slot.name, "type", "bridge"])
        run(["ip", "address", "add", f"172.31.{slot.number}.1/24", "dev", slot.name])
        run(["ip", "link", "set", slot.name, "up"])
        slot.group.create()
        directory = slot.directory
        url = f"unix://{directory}/docker.sock"
        log = directory / "dockerd.log"
        dockerd = [
            *("dockerd", f"--host={url}", f"--data-root={directory}/data", f"--exec-root={directory}/exec"),
            *(
                f"--pidfile={directory}/pid",
                f"--cgroup-parent=/{slot.name}/containers",
                f"--bridge={slot.name}",
            ),
            *(
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
                "--ip-masq=false",
                "--dns=127.0.0.1",
            ),
        ]
        # The shell is the first process: it reaps orphans, and ends, all with it, when the tests are over.
        script = 'mount -t proc proc /proc && read -r _ && { "$@" </dev/null & } && { read -r _ || true; }'
        process = NamespacedProcess(
            ["/bin/bash", "-c", script, "engine", *dockerd],
            namespaces=["mount", "pid"],
            group=slot.group,
            log=log,
        )
        process.go_on()
        engine = LocalEngine(url, process)

        def answers() -> bool:
            if not process.alive:
                raise RuntimeError(f"the Docker Engine ended: {log.read_text(errors='replace')[-4000:]}")
            return engine_answers(directory / "docker.sock")

        try:
            wait_until(answers, 60, "the Docker Engine of this machine answers")
            yield engine
        finally:
            process.kill()
