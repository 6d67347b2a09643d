"""Why a testbed, or a Docker Engine, cannot be had on this machine; the reason for which tests skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache

from tests.testbed.engine import running_engine
from tests.testbed.slots import STATE

_ENGINE = {
    "docker": "docker.io",
    "dockerd": "docker.io",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "busybox": "busybox-static",
}
_HOSTS = {"sshd": "openssh-server", "ssh-keygen": "openssh-client", "nft": "nftables", "pgrep": "procps"}
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@lru_cache
def testbed_reason() -> str | None:
    """Why no testbed can run here; None if one can."""
    return _machine_reason() or _missing({**_ENGINE, **_HOSTS}) or _namespaces_reason()


@lru_cache
def docker_reason() -> str | None:
    """Why tests cannot have a Docker Engine here; None if one runs or can be started."""
    if sys.platform != "linux":
        return "needs Linux, of whose programs the images are made"
    if shutil.which("busybox") is None:
        return "needs the package busybox-static, of which the images are made"
    if running_engine() is not None:
        return None
    return _machine_reason() or _missing(_ENGINE) or _namespaces_reason()


def _machine_reason() -> str | None:
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    return None


def _missing(commands: dict[str, str]) -> str | None:
    packages: Iterable[str] = {
        package for command, package in commands.items() if shutil.which(command, path=_PATH) is None
    }
    return f"needs the packages {', '.join(sorted(packages))}" if packages else None


def _namespaces_reason() -> str | None:
    """Try what a host does first, which a container, or a hardened kernel, may not allow."""
    script = (
        'set -e; d=$(mktemp -d -p "$1"); trap \'umount "$d/m" 2>/dev/null; rm -rf "$d"\' EXIT;'
        ' mkdir "$d"/u "$d"/w "$d"/m; mount -t overlay o -o "lowerdir=/,upperdir=$d/u,workdir=$d/w" "$d/m"'
    )
    STATE.mkdir(parents=True, exist_ok=True)
    command = [
        "unshare",
        "-m",
        "-p",
        "-n",
        "-u",
        "-i",
        "-C",
        "--fork",
        "sh",
        "-c",
        script,
        "probe",
        str(STATE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        return f"no namespaces with an overlay of / here: {done.stderr.strip()}"
    return None
