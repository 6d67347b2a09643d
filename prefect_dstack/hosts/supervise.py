"""The supervisor's own process: keeps one program running until it is told to stop.

It is run by path, not as a module of the package, and needs nothing but the standard library, so that it
starts in milliseconds and outlives the environment that started it. `supervisor.py` starts and steers it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# The restart delays of Docker's restart policies.
FIRST_DELAY = 0.1
LONGEST_DELAY = 60.0
HEALTHY_AFTER = 10.0

# In the directory of a program, in which its supervisor runs; it has written its process id into it.
LOCK = "supervisor.lock"

PROC = Path("/proc")
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class _RotatedLog:
    """Appends to `path`, and keeps `files` older ones of at most `limit` bytes.

    Beside each is a file of times: once a second at most, the Unix time of a write and the position where
    it begins. Whoever asks for the last ten minutes finds them by it.
    """

    def __init__(self, path: Path, limit: int, files: int) -> None:
        self.path, self.limit, self.files = path, limit, files
        self.times_path = path.with_suffix(".times")
        self._open()

    def _open(self) -> None:
        self.stream = self._appending(self.path)
        self.times = self._appending(self.times_path)
        self.noted = 0

    @staticmethod
    def _appending(path: Path) -> Any:
        return open(path, "ab", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600))

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk costs output, not the program
            if self.stream.closed or self.times.closed:
                self._open()
            if self.stream.tell() + len(data) > self.limit:
                self._rotate()
            second = int(time.time())
            if second != self.noted:
                self.times.write(b"%d %d\n" % (second, self.stream.tell()))
                self.noted = second
            self.stream.write(data)

    def _rotate(self) -> None:
        self.stream.close()
        self.times.close()
        for path in (self.path, self.times_path):
            for number in range(self.files, 0, -1):
                older = path.with_name(f"{path.name}.{number}")
                newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
                if newer.exists():
                    newer.replace(older)
        self._open()


def _linux_prctl() -> Callable[..., int] | None:
    """Find prctl(2), which lets a parent's death reach its children; other systems have no such call."""
    if sys.platform != "linux":
        return None
    prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return prctl


def _processes() -> Iterator[tuple[int, str, str, str]]:
    """Walk over the process table of Linux: process id, state, parent and process group."""
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                state, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                yield int(entry.name), state, parent, group


def _is_supervisor(pid: int) -> bool:
    """Return whether a process supervises another program, which is to outlive whoever started it."""
    try:
        return (PROC / str(pid) / "cwd" / LOCK).read_text() == str(pid)
    except (OSError, ValueError):
        return False


class _Supervision:
    """One program, its restarts, its output and its end."""

    def __init__(self, directory: Path, program: dict[str, Any]) -> None:
        self.directory = directory
        self.program = program
        self.log = _RotatedLog(directory / "output.log", program["log_bytes"], program["log_files"])
        self.output, self.input = os.pipe()
        os.set_blocking(self.output, False)
        self.child: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.delay = FIRST_DELAY
        self.restart_at: float | None = None
        self.status: dict[str, Any] = {"state": "starting", "pid": None, "restarts": 0, "exit_code": None}
        self.prctl = _linux_prctl()
        self.stopping = False
        self.finished = False

    def report(self, **changes: Any) -> None:
        self.status.update(changes)
        fresh = self.directory / "status.json.new"
        try:
            fresh.write_text(json.dumps(self.status))
            fresh.replace(self.directory / "status.json")
        except OSError:  # a full disk is passing; without its directory nobody can find the program again
            if not self.directory.is_dir():
                raise

    def launch(self) -> None:
        prctl = self.prctl

        def die_with_supervisor() -> None:
            if prctl is not None:
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        self.kill_strays()  # those that the last ones had started became our children since
        self.restart_at = None
        self.started = time.monotonic()
        try:
            self.child = subprocess.Popen(
                self.program["arguments"],
                env=self.program["environment"],
                cwd=self.program["working_directory"],
                stdin=subprocess.DEVNULL,
                stdout=self.input,
                stderr=self.input,
                start_new_session=True,
                preexec_fn=die_with_supervisor,
            )
        except OSError as error:
            self.log.write(f"cannot start: {error}\n".encode())
            self.ended(127)
        else:
            self.report(state="running", pid=self.child.pid, started_at=time.time())

    def ended(self, code: int) -> None:
        if self.child is not None:
            self.signal_group(signal.SIGKILL)
            self.child = None
        self.kill_strays()
        if not self.program.get("restart", True):
            self.finished = True
            self.report(state="stopped", pid=None, exit_code=code)
            return
        if time.monotonic() - self.started >= HEALTHY_AFTER:
            self.delay = FIRST_DELAY
        self.restart_at = time.monotonic() + self.delay
        self.delay = min(self.delay * 2, LONGEST_DELAY)
        self.report(state="waiting", pid=None, exit_code=code, restarts=self.status["restarts"] + 1)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.child is not None and pid == self.child.pid:
                self.child.returncode = os.waitstatus_to_exitcode(status)
                self.forward_output()
                if not self.stopping:  # else the rest of its group has its grace period still
                    self.ended(self.child.returncode)

    def signal_group(self, number: int) -> bool:
        """Send a signal to the program's process group; return whether it had a process."""
        if self.child is None:
            return False
        try:
            os.killpg(self.child.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # macOS answers so for a group of zombies
            return False
        return True

    def strays(self) -> Iterator[int]:
        """Yield what left the program's process group: as a subreaper we are its parent by now."""
        if self.prctl is None:
            return
        mine = str(os.getpid())
        for pid, state, parent, _ in _processes():
            if parent == mine and state != "Z" and not _is_supervisor(pid):
                yield pid

    def kill_strays(self) -> None:
        for pid in self.strays():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def forward_output(self) -> None:
        while True:
            try:
                data = os.read(self.output, 65536)
            except BlockingIOError:
                return
            self.log.write(data)

    def stop(self, wakeup: int) -> None:
        self.stopping = True
        self.report(state="stopping")
        leader = self.child
        if leader is not None:
            self.signal_group(getattr(signal, self.program["stop_signal"]))
            deadline = time.monotonic() + self.grace()
            while time.monotonic() < deadline and self.group_lives(leader.pid):
                self.wait(wakeup, 0.05)
                self.reap()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(leader.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            self.kill_strays()
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                if self.prctl is not None and not any(self.strays()):
                    break
                self.wait(wakeup, 0.02)
        self.forward_output()
        self.report(state="stopped", pid=None)

    @staticmethod
    def group_lives(group: int) -> bool:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        if not PROC.is_dir():
            return True
        # What has ended still counts, if its parent does not ask for its exit code.
        return any(found == str(group) and state != "Z" for _, state, _, found in _processes())

    def grace(self) -> float:
        with contextlib.suppress(OSError, ValueError):
            return float((self.directory / "grace").read_text())
        return float(self.program["grace"])

    def wait(self, wakeup: int, seconds: float | None) -> None:
        ready, _, _ = select.select([self.output, wakeup], [], [], seconds)
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 4096)
        if self.output in ready:
            self.forward_output()

    def run(self) -> None:
        if self.prctl is not None:
            self.prctl(PR_SET_CHILD_SUBREAPER, 1)
        wakeup, woken = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(woken, False)
        asked: list[int] = []
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        # Handlers, because the program would inherit that a signal is ignored.
        signal.signal(signal.SIGHUP, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        self.launch()
        while not asked and not self.finished:
            pause = None if self.restart_at is None else max(0.0, self.restart_at - time.monotonic())
            self.wait(wakeup, pause)
            self.reap()
            if not asked and self.restart_at is not None and time.monotonic() >= self.restart_at:
                self.launch()
        if self.finished:
            self.forward_output()
        else:
            self.stop(wakeup)


def _acquire(lock: int) -> bool:
    """Acquire the lock; a process that only checks it holds it for an instant, so try more than once."""
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.01)
    return False


def _detach() -> None:
    """Become a daemon; the process that was started ends once the lock is held."""
    ready, locked = os.pipe()
    if os.fork():
        os.close(locked)
        os._exit(0 if os.read(ready, 1) == b"1" else 1)
    os.close(ready)
    os.setsid()
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _acquire(lock):
        os.write(locked, b"0")
        os._exit(1)
    for stale in ("status.json", "grace"):
        Path(stale).unlink(missing_ok=True)
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    os.write(locked, b"1")
    os.close(locked)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def main() -> None:
    """Read the program as JSON from standard input, and supervise it in the directory given."""
    directory = Path(sys.argv[1])
    program = json.load(sys.stdin)
    os.chdir(directory)
    os.umask(0o077)
    _detach()
    _Supervision(directory, program).run()


if __name__ == "__main__":
    main()
