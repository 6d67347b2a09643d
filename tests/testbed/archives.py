"""Container images without a registry or a builder, written as `docker load` wants them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import stat
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass
class Tree:
    """Files of one layer, by their path in the image, without the leading slash."""

    _members: dict[str, tuple[tarfile.TarInfo, Path | bytes | None]] = field(default_factory=dict)

    def directory(self, path: str, *, mode: int = 0o755, uid: int = 0) -> None:
        """Add an empty directory."""
        info = self._info(path, tarfile.DIRTYPE, mode)
        info.uid = info.gid = uid
        self._members[path] = (info, None)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        info = self._info(path, tarfile.SYMTYPE, 0o777)
        info.linkname = target
        self._members[path] = (info, None)

    def text(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Add a file with this text."""
        info = self._info(path, tarfile.REGTYPE, mode)
        info.size = len(text.encode())
        self._members[path] = (info, text.encode())

    def file(self, path: str, source: Path) -> None:
        """Add a copy of a file of this machine, with its time and whether it can be executed."""
        status = source.stat()
        executable = bool(status.st_mode & stat.S_IXUSR)
        info = self._info(path, tarfile.REGTYPE, 0o755 if executable else 0o644)
        info.size, info.mtime = status.st_size, int(status.st_mtime)
        self._members[path] = (info, source)

    def files(self, path: str, source: Path, *, without: Iterable[str] = ()) -> None:
        """Add a directory of this machine with all below it, but for files and directories of these names."""
        skipped = set(without)
        for folder, folders, names in os.walk(source):
            folders[:] = [name for name in folders if name not in skipped]
            for name in names:
                file = Path(folder, name)
                if name not in skipped and file.is_file():
                    self.file(f"{path}/{file.relative_to(source)}", file)

    def write(self, path: Path) -> str:
        """Write the layer, always the same bytes for the same files, and return their SHA-256."""
        with path.open("wb") as out, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in sorted(self._members):
                info, content = self._members[name]
                if isinstance(content, Path):
                    with content.open("rb") as file:
                        tar.addfile(info, file)
                else:
                    tar.addfile(info, io.BytesIO(content or b""))
        return digest(path)

    def _info(self, path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(path)
        info.type, info.mode = kind, mode
        return info


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    value = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value.update(block)
    return value.hexdigest()


def write_image(path: Path, *, tag: str, layers: Iterable[Path], config: Mapping[str, Any]) -> str:
    """Write an image archive.

    Args:
        path: Where to.
        tag: Name of the image, as `repository:tag`.
        layers: Layer files, the lowest first.
        config: The image's `Config`: `Cmd`, `Entrypoint`, `Env`, `User`, ...

    Returns:
        The image's id: `sha256:...`.
    """
    layers = list(layers)
    names = [f"{digest(layer)}.tar" for layer in layers]
    document = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{name[:-4]}" for name in names]},
        "history": [{"created": "2020-01-01T00:00:00Z", "created_by": layer.stem} for layer in layers],
    }
    text = json.dumps(document, sort_keys=True)
    image = hashlib.sha256(text.encode()).hexdigest()
    tree = Tree()
    tree.text(f"{image}.json", text)
    tree.text("manifest.json", json.dumps([{"Config": f"{image}.json", "RepoTags": [tag], "Layers": names}]))
    for name, layer in zip(names, layers, strict=True):
        tree.file(name, layer)
    tree.write(path)
    return f"sha256:{image}"
