"""A client that asks a service again and again while something else happens to it."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

PAUSE = 0.02


class Asking:
    """Asks for `/` on one connection that is kept, and on a new one each time; a context manager.

    Args:
        url: Of a service that answers JSON.
        key: What answers are counted by; the example counts revisions, the testbed's application has others.

    Attributes:
        failures: What was not answered with 200, in words.
        answers: How many answers had each value of the key.
    """

    def __init__(self, url: str, key: str = "revision") -> None:
        asked = urlsplit(url)
        self.host, self.port = asked.hostname or "127.0.0.1", asked.port or 80
        self.key = key
        self.failures: list[str] = []
        self.answers: Counter[str] = Counter()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(kept,)) for kept in (True, False)]

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

    def _ask(self, kept: bool) -> None:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        while not self._done.wait(PAUSE):
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                connection.close()
                continue
            if response.status == 200:
                self.answers[json.loads(body)[self.key]] += 1
            else:
                self.failures.append(f"{response.status} {body[:200]!r}")
            if not kept:
                connection.close()
        connection.close()
