"""A replica's commands run in a virtual environment that is its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import ConfigurationError, HostNotReadyError
from prefect_dstack.hosts.local_machine import LocalMachine
from prefect_dstack.runtimes.base import Launch, Replica
from prefect_dstack.runtimes.process import ProcessRuntime
from prefect_dstack.runtimes.virtual_environment import environment_commands, make_virtual_environment
from tests.polling import wait_until
from tests.workloads import service_of, spec_of

MACHINE = LocalMachine()
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
SHOW = "python -c 'import sys; print(sys.prefix, sys.version_info[:2], sys.prefix != sys.base_prefix)'"
# A package that can be installed without an index.
PACKAGE = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tiny"
version = "1"
"""
BACKEND = """
import zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(f"{directory}/tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "WORD = 'installed'")
        wheel.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n")
        wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.dist-info/RECORD", "")
    return "tiny-1-py3-none-any.whl"
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """uv asks nobody, and finds nothing that earlier tests have left."""
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[ProcessRuntime]:
    runtime = ProcessRuntime(tmp_path / "replicas")
    yield runtime
    for replica in runtime.replicas(MACHINE):
        runtime.remove(MACHINE, replica, grace=0)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    (work / "package").mkdir(parents=True)
    (work / "package" / "pyproject.toml").write_text(PACKAGE)
    (work / "package" / "backend.py").write_text(BACKEND)
    return work


def launch_of(work: Path, *commands: str, number: int = 0, revision: int = 3, **keys: Any) -> Launch:
    configuration = service_of(work, commands=[*commands, "exec sleep 300"], **keys)
    stamp = Stamp(service="hello", revision=revision, replica=number, flow_run="first")
    return Launch(stamp=stamp, spec=spec_of(configuration, work))


@pytest.fixture
def start(runtime: ProcessRuntime, work: Path) -> Callable[..., Replica]:
    def start(*commands: str, **keys: Any) -> Replica:
        return runtime.launch(MACHINE, launch_of(work, *commands, **keys), lambda _: None)

    return start


def lines_of(runtime: ProcessRuntime, replica: Replica) -> list[str]:
    return wait_until(lambda: list(runtime.logs(MACHINE, replica)), 30, f"{replica.name} writes") or []


def test_commands_run_in_it(runtime: ProcessRuntime, start: Callable[..., Replica]) -> None:
    replica = start(SHOW, python=HERE)

    prefix = Path(replica.id) / "venv"
    assert lines_of(runtime, replica) == [f"{prefix} {sys.version_info[:2]} True"]


@pytest.mark.parametrize("installer", ["uv pip install", "pip install --no-build-isolation"])
def test_what_one_installs_is_seen_by_no_other(
    runtime: ProcessRuntime, start: Callable[..., Replica], installer: str
) -> None:
    first = start(f"{installer} --quiet ./package", "python -c 'import tiny; print(tiny.WORD)'", python=HERE)
    assert lines_of(runtime, first)[-1] == "installed"

    for other in ({"number": 1}, {"revision": 4}):
        second = start("python -c 'import tiny' 2>/dev/null || echo not here", python=HERE, **other)
        assert lines_of(runtime, second) == ["not here"]


def test_without_a_version_only_commands_that_install_get_one(
    runtime: ProcessRuntime, start: Callable[..., Replica]
) -> None:
    replica = start("uv pip install --quiet ./package", SHOW)
    assert lines_of(runtime, replica) == [f"{replica.id}/venv {sys.version_info[:2]} True"]

    other = start('echo "${VIRTUAL_ENV-none}"', number=1)
    assert lines_of(runtime, other) == ["none"]
    assert not (Path(other.id) / "venv").exists()


def test_goes_with_the_replica(runtime: ProcessRuntime, start: Callable[..., Replica]) -> None:
    replica = start(SHOW, python=HERE)
    lines_of(runtime, replica)

    runtime.remove(MACHINE, replica, grace=0)

    assert not Path(replica.id).exists()


def test_another_version_is_found_on_the_path(
    runtime: ProcessRuntime, start: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = another_python()
    if other is None:
        pytest.skip("this machine has one version of Python only")
    version, binary = other
    monkeypatch.setenv("PATH", f"{binary.parent}:{os.environ['PATH']}")

    replica = start(SHOW, python=version)

    assert f"(3, {version.partition('.')[2]}) True" in lines_of(runtime, replica)[0]


def test_a_version_behind_a_shim_of_pyenv_is_found(
    runtime: ProcessRuntime, start: Callable[..., Replica], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyenv has a program for each version, which fails unless that version is selected."""
    shims, real = tmp_path / "pyenv" / "shims", tmp_path / "pyenv" / "versions" / f"{HERE}.9" / "bin"
    for directory in (shims, real):
        directory.mkdir(parents=True)
    (shims / f"python{HERE}").write_text("#!/bin/sh\necho not selected >&2; exit 127\n")
    (shims / f"python{HERE}").chmod(0o755)
    (real / f"python{HERE}").symlink_to(Path(sys.base_prefix, "bin", f"python{HERE}"))
    monkeypatch.setenv("PATH", f"{shims}:/usr/sbin:/sbin:/bin")

    replica = start(SHOW, python=HERE)

    assert lines_of(runtime, replica) == [f"{replica.id}/venv {sys.version_info[:2]} True"]


def test_a_version_that_cannot_be_had_is_refused_with_those_that_are_here(
    runtime: ProcessRuntime, work: Path
) -> None:
    launch = launch_of(work, "true", python="3.99")

    with pytest.raises(ConfigurationError) as raised:
        runtime.launch(MACHINE, launch, lambda _: None)

    message = str(raised.value)
    assert message.startswith("<mapping>: python: Python 3.99 is not on this machine")
    assert HERE in message
    assert message.endswith("or install it: uv python install 3.99")


def test_a_directory_that_cannot_be_written_is_the_machines_fault(work: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "venv").write_text("in the way")
    (place / "venv").chmod(0o400)

    with pytest.raises(HostNotReadyError, match="uv cannot make a virtual environment"):
        make_virtual_environment(
            place, launch_of(work, "true", python=HERE).spec, dict(os.environ), lambda _: None
        )


def test_several_that_make_it_at_once_make_one(work: Path, tmp_path: Path) -> None:
    spec, told = launch_of(work, "true", python=HERE).spec, list[str]()

    def make(_: int) -> Path:
        return make_virtual_environment(tmp_path, spec, dict(os.environ), told.append)

    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(make, range(4)))

    assert made == {tmp_path / "venv"}
    assert len([line for line in told if "making a virtual environment" in line]) == 1
    assert subprocess.run([tmp_path / "venv" / "bin" / "python", "-c", ""], check=False).returncode == 0


def test_what_was_left_half_made_is_made_again(work: Path, tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").write_text("half")

    made = make_virtual_environment(
        tmp_path, launch_of(work, "true", python=HERE).spec, dict(os.environ), lambda _: None
    )

    assert subprocess.run([made / "bin" / "python", "-c", ""], check=False).returncode == 0


class TestInContainers:
    """The commands that a container runs first, here in a shell of this machine."""

    def run(self, python: str, path: str, replica: int) -> subprocess.CompletedProcess[str]:
        names = {"DSTACK_RUN_NAME": f"t{os.getpid()}", "DSTACK_REVISION": "1"}
        return subprocess.run(
            ["/bin/sh", "-c", "\n".join(["set -e", *environment_commands(python), SHOW])],
            env={**os.environ, **names, "PATH": path, "DSTACK_REPLICA_NUM": str(replica)},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_make_an_environment_that_is_kept_over_restarts(self) -> None:
        import shutil

        from uv import find_uv_bin

        prefix = Path(f"/tmp/prefect-dstack-venv-t{os.getpid()}-1-0")
        path = f"{Path(find_uv_bin()).parent}:{os.environ['PATH']}"
        try:
            done = self.run(HERE, path, 0)
            assert done.stdout == f"{prefix} {sys.version_info[:2]} True\n", done.stderr
            (prefix / "mark").touch()
            assert self.run(HERE, path, 0).returncode == 0
            assert (prefix / "mark").exists()
        finally:
            shutil.rmtree(prefix, ignore_errors=True)

    def test_name_an_image_without_uv(self, tmp_path: Path) -> None:
        for name in ("python", "rm", "touch"):
            (tmp_path / name).symlink_to(sys.executable if name == "python" else f"/bin/{name}")

        done = self.run("3.12", str(tmp_path), 1)
        assert done.returncode == 127
        assert "has no uv" in done.stderr
        assert self.run("", str(tmp_path), 1).returncode == 0


def another_python() -> tuple[str, Path] | None:
    """A version of Python that does not run this, and its program."""
    directories = [Path(directory) for directory in os.environ["PATH"].split(":")]
    behind = [
        found for it in directories if it.name == "shims" for found in it.parent.glob("versions/3.*/bin")
    ]
    for directory in [*(it for it in directories if it.name != "shims"), *behind]:
        for found in directory.glob("python3.*"):
            minor = found.name.removeprefix("python3.")
            if minor.isdecimal() and int(minor) >= 8 and int(minor) != sys.version_info.minor:
                return f"3.{minor}", found
    return None
