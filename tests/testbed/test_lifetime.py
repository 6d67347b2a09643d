"""Nothing of a testbed or an engine outlives the tests, however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.polling import wait_until
from tests.testbed import requirements
from tests.testbed.cgroups import ControlGroup
from tests.testbed.processes import run
from tests.testbed.slots import STATE, Slot

pytestmark = pytest.mark.testbed

REPOSITORY = Path(__file__).parents[2]

TESTBED = """
import sys
from tests.testbed.images import load_image
from tests.testbed.testbed import Testbed
with Testbed() as testbed:
    host = testbed.host("doomed", internal_network="10.78.0.0/24", disk=200 << 20)
    load_image(host, "busybox")
    host.check(["docker", "run", "-d", "testbed/busybox:1", "sleep", "100"])
    print(testbed.switch.name, flush=True)
    sys.stdin.read()
"""
ENGINE = """
import os, sys
from tests.testbed.engine import local_engine
from tests.testbed.images import load_image
os.environ["DOCKER_HOST"] = "unix:///nonexistent"
with local_engine() as engine:
    load_image(engine, "busybox")
    with engine.docker() as client:
        ports = {"1/tcp": ("127.0.0.1", None)}
        client.containers.run("testbed/busybox:1", "sleep 100", detach=True, ports=ports)
    print(engine.url.split("/")[-2], flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _testbed_possible() -> None:
    reason = requirements.testbed_reason()
    if reason:
        pytest.skip(f"no testbed: {reason}")


@contextmanager
def script(text: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds what the script makes, and the name of its slot."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Whoever runs tests in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def left(name: str) -> list[str]:
    """What exists of a slot."""
    places = [STATE / name, Path("/run/netns", name), Path("/sys/class/net", name)]
    groups = [str(file) for file in ControlGroup(name).entrances()]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if f"/{name}" in line]
    loops = [line for line in run(["losetup", "-l", "-n", "-O", "BACK-FILE"]).splitlines() if name in line]
    processes = [str(pid) for pid in _processes_naming(name)]
    return [*(str(place) for place in places if place.exists()), *groups, *mounts, *loops, *processes]


def _processes_naming(name: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if name.encode() in text and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def lives(pid: int) -> bool:
    """Whether a process exists, and not only until its parent takes note of its death."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("text", "end"),
    [
        pytest.param(TESTBED, None, id="testbed"),
        pytest.param(TESTBED, signal.SIGINT, id="testbed-SIGINT"),
        pytest.param(TESTBED, signal.SIGTERM, id="testbed-SIGTERM"),
        pytest.param(TESTBED, signal.SIGKILL, id="testbed-SIGKILL"),
        pytest.param(ENGINE, None, id="engine"),
        pytest.param(ENGINE, signal.SIGKILL, id="engine-SIGKILL"),
    ],
)
def test_everything_is_gone_after(text: str, end: signal.Signals | None) -> None:
    with script(text) as (process, name):
        assert name, "it did not start"
        members = ControlGroup(name).processes()
        assert len(members) >= 5
        assert len(left(name)) >= 5
        if end is None:
            process.communicate()
        else:
            process.send_signal(end)
        wait_until(lambda: process.poll() is not None, 20, "the script ends")
        wait_until(lambda: not left(name), 20, "nothing is left")
        assert not [pid for pid in members if lives(pid)]


def test_what_was_left_when_even_the_janitor_was_killed_is_removed_by_the_next() -> None:
    text = """
import subprocess, sys
from tests.testbed.processes import run
from tests.testbed.slots import Slot
slot = Slot("pd-left")
slot.group.create()
run(["ip", "netns", "add", slot.name])
run(["ip", "link", "add", slot.name, "type", "bridge"])
join = ["sh", "-c", 'echo $$ >"$0" && exec sleep 1000', str(slot.group.entrances()[0])]
sleeper = subprocess.Popen(join, start_new_session=True)
print(slot.name, slot._janitor.pid, sleeper.pid, flush=True)
sys.stdin.read()
"""
    with script(text) as (process, line):
        name, janitor, sleeper = line.split()
        wait_until(lambda: int(sleeper) in ControlGroup(name).processes(), 5)
        os.kill(int(janitor), signal.SIGKILL)
        process.kill()
        process.wait()
    assert len(left(name)) > 5
    with Slot("pd-left") as slot:
        assert slot.name == name
        assert not lives(int(sleeper))
        assert [place for place in left(name) if place != str(slot.directory)] == [
            str(pid) for pid in _processes_naming(name)
        ]
    assert left(name) == []
    (STATE / f"{name}.lock").unlink()


def test_two_at_once_have_two_places() -> None:
    with Slot("pd-left") as first, Slot("pd-left") as second:
        assert first.name != second.name
    for slot in (first, second):
        (STATE / f"{slot.name}.lock").unlink()


def test_no_place_left_is_an_error() -> None:
    with (
        Slot("pd-left", places=1) as slot,
        pytest.raises(RuntimeError, match="all 1 places for a pd-left are in use"),
    ):
        Slot("pd-left", places=1)
    (STATE / f"{slot.name}.lock").unlink()
