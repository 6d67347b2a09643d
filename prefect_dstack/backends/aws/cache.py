"""What AWS told us, kept on disk for a while."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

__all__ = ["Cache", "Memo"]


T = TypeVar("T")


class Memo(Generic[T]):
    """Values in memory with an age; of many threads that miss one, one makes it and the others wait.

    Args:
        max_age: Seconds.
    """

    def __init__(self, max_age: float) -> None:
        self._max_age = max_age
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._values: dict[str, tuple[float, T]] = {}

    def get(self, key: str, make: Callable[[], T]) -> T:
        """Return a value, made if need be; what making it raises passes, and nothing is kept."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            made, value = self._values.get(key, (0.0, None))
            if value is None or time.monotonic() - made > self._max_age:
                value = make()
                self._values[key] = (time.monotonic(), value)
            return value

    def forget(self, key: str) -> None:
        """Drop a value that turned out to be wrong."""
        self._values.pop(key, None)


class Cache:
    """JSON values with an age.

    Args:
        scope: Whose values; two scopes never see each other's, for example an account and its endpoint.
        directory: Where.
    """

    def __init__(self, scope: str, directory: Path) -> None:
        self._scope = scope
        self._directory = directory

    def get(self, key: str, max_age: float, fetch: Callable[[], Any]) -> Any:
        """Return a value that is young enough, fetched if need be.

        Args:
            key: For example `types-eu-west-1`.
            max_age: Seconds.
            fetch: Gets the value anew; what it raises passes, and nothing is kept.

        Returns:
            The value, as JSON gives it back.
        """
        path = self._path(key)
        with contextlib.suppress(OSError, ValueError):
            if 0 <= time.time() - path.stat().st_mtime < max_age:
                return json.loads(path.read_text("utf-8"))
        text = json.dumps(fetch())
        # A full disk or a read-only home costs time, not the deployment.
        with contextlib.suppress(OSError):
            self._write(path, text)
        return json.loads(text)

    def age(self, key: str) -> float | None:
        """Return how old a value is, in seconds, or None if there is none."""
        with contextlib.suppress(OSError):
            return time.time() - self._path(key).stat().st_mtime
        return None

    def _path(self, key: str) -> Path:
        scope = hashlib.sha256(self._scope.encode()).hexdigest()[:12]
        return self._directory / f"{key}-{scope}.json"

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
