"""Virtual environments of replicas, made with uv: by us on this machine, by the shell in a container.

Each replica has its own: what its commands install changes neither another replica nor another revision, and
goes with it. uv makes one in a fraction of a second, and links installed packages to its own cache.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from uv import find_uv_bin

from prefect_dstack.domain.workload import WorkloadSpec
from prefect_dstack.errors import ConfigurationError, HostNotReadyError
from prefect_dstack.runtimes.base import Report

__all__ = ["environment_commands", "make_virtual_environment", "variables_of"]


def make_virtual_environment(
    place: Path, spec: WorkloadSpec, environment: Mapping[str, str], report: Report
) -> Path:
    """Make the virtual environment of a replica, unless it is there already.

    Args:
        place: The replica's directory. Of several that make the environment there at once, one does.
        spec: What it runs; `python` is the version, empty for the one that runs this.
        environment: The variables of its commands: uv uses the same indexes and certificates as they do.
        report: Told of progress.

    Returns:
        The environment.

    Raises:
        ConfigurationError: If that version is not on this machine, and uv cannot download it.
        HostNotReadyError: If the environment cannot be made for another reason.
    """
    directory, complete = place / "venv", place / "venv.complete"
    with (place / "venv.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if complete.exists():
            return directory
        report(f"{place.name}: making a virtual environment of Python {spec.python or _own_version()}")
        request = _installed(spec.python, environment) if spec.python else sys.executable
        seeded = _make(directory, request, environment, "--seed")
        if seeded.returncode != 0:
            # Without pip, because no index can be reached: the commands may need none.
            made = _make(directory, request, environment)
            if made.returncode != 0:
                raise _cannot_make(made.stderr, place, spec, environment)
            report(f"{place.name}: its environment has no pip: {_reason(seeded.stderr)}")
        complete.touch()
    return directory


def variables_of(directory: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which commands use a virtual environment.

    Args:
        directory: The environment.
        environment: The variables that they have otherwise.

    Returns:
        Those that replace them.
    """
    path = environment.get("PATH", os.defpath)
    # Last, for machines that have no uv of their own.
    variables = {
        "VIRTUAL_ENV": str(directory),
        "PATH": f"{directory / 'bin'}:{path}:{Path(find_uv_bin()).parent}",
    }
    if not (directory / "bin" / "pip").exists():
        # Any other pip that the commands find installs into this environment too.
        variables["PIP_PYTHON"] = str(directory / "bin" / "python")
    return variables


def environment_commands(python: str) -> list[str]:
    """Return what a shell does in a container, so that the commands after it run in a virtual environment.

    An environment that is complete is kept when the container is started again.

    Args:
        python: The version of Python; empty for the one that the image has, with uv or without.

    Returns:
        Commands for a POSIX shell that ends at the first failure.
    """
    missing = "echo \"prefect-dstack: the image has no uv, which 'python' needs\" >&2; exit 127"
    make = f'uv venv -q --prompt "$DSTACK_RUN_NAME"{f" -p {python}" if python else ""}'
    commands = [
        # Named for the replica: /tmp may be a directory that several mount.
        'VIRTUAL_ENV="/tmp/prefect-dstack-venv-$DSTACK_RUN_NAME-$DSTACK_REVISION-$DSTACK_REPLICA_NUM"',
        'if [ ! -e "$VIRTUAL_ENV/.complete" ]; then',
        '  rm -rf "$VIRTUAL_ENV"',
        f'  {make} --seed "$VIRTUAL_ENV" || {{ rm -rf "$VIRTUAL_ENV"; {make} "$VIRTUAL_ENV"; }}',
        '  touch "$VIRTUAL_ENV/.complete"',
        "fi",
        'export VIRTUAL_ENV PATH="$VIRTUAL_ENV/bin:$PATH"',
    ]
    if python:
        return [f"command -v uv >/dev/null || {{ {missing}; }}", *commands]
    return ["if command -v uv >/dev/null; then", *commands, "fi"]


def _make(
    directory: Path, request: str, environment: Mapping[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    # uv clears only what it takes for an environment, which half of one may not be.
    shutil.rmtree(directory, ignore_errors=True)
    fixed = ("venv", "--quiet", "--no-project", "--prompt", directory.parent.name)
    return _uv([*fixed, "--python", request, *options, str(directory)], environment)


def _uv(arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find_uv_bin(), *arguments],
        env={**environment, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _installed(version: str, environment: Mapping[str, str]) -> str:
    """Return what to ask uv for: the interpreter behind a shim of pyenv, which answers only when selected."""
    shim = shutil.which(f"python{version}", path=environment.get("PATH"))
    if shim is None or Path(shim).parent.name != "shims":
        return version
    behind = Path(shim).parents[1].glob(f"versions/{version}.*/bin/python{version}")
    return str(max(behind, key=lambda path: path.stat().st_mtime, default=version))


def _cannot_make(
    written: str, place: Path, spec: WorkloadSpec, environment: Mapping[str, str]
) -> ConfigurationError | HostNotReadyError:
    here = _versions(environment)
    if not spec.python or spec.python in here:
        return HostNotReadyError(f"{place}: uv cannot make a virtual environment: {_reason(written)}")
    return ConfigurationError(
        f"Python {spec.python} is not on this machine, and uv could not download it: {_reason(written)}: use "
        f"a version that is here ({', '.join(here)}), or install it: uv python install {spec.python}",
        source=spec.source,
        line=spec.lines.get("python"),
        key="python",
    )


def _versions(environment: Mapping[str, str]) -> list[str]:
    listed = _uv(["python", "list", "--only-installed", "--output-format", "json"], environment)
    try:
        parts = [found["version_parts"] for found in json.loads(listed.stdout)]
    except ValueError:
        parts = []
    own = (sys.version_info.major, sys.version_info.minor)
    versions = {own, *((part["major"], part["minor"]) for part in parts)}
    return [f"{major}.{minor}" for major, minor in sorted(versions) if major == 3]


def _own_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _reason(written: str) -> str:
    """Return what uv says went wrong: the last cause that it names, else its first line."""
    lines = [line.strip() for line in written.splitlines() if line.strip()]
    causes = [line.removeprefix("cause: ") for line in lines if line.startswith("cause: ")]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(iter([*causes[-1:], *errors, *lines]), "it does not say why")
