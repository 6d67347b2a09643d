"""Clients that ask all the time, and remember each request that failed."""

from __future__ import annotations

import http.client
import threading
import time
from dataclasses import dataclass

PAUSE = 0.05
# Longer than a replica is ever suspended: a request that only takes its time has not failed.
TIMEOUT = 30.0


@dataclass(frozen=True)
class Failure:
    """A request that failed: of which service, how it was asked, when, and what came instead of an answer."""

    service: str
    method: str
    began: float
    ended: float
    what: str


class Clients:
    """Two clients of one service: one may be tried again, the other may not.

    The first asks with GET on a connection that is kept, the second with POST on a new one each time.

    Args:
        service: The service.
        address: The machine that answers.
        port: Where it answers there.
        token: What they send, for services that need one.
    """

    def __init__(self, service: str, address: str, port: int, token: str) -> None:
        self.service, self.address, self.port, self.token = service, address, port, token
        self.failures: list[Failure] = []
        self.answers = 0
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(method,)) for method in ("GET", "POST")]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, method: str) -> None:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=TIMEOUT)
        while not self._done.wait(PAUSE):
            began, what = time.monotonic(), ""
            try:
                connection.request(method, "/", headers={"Authorization": f"Bearer {self.token}"})
                response = connection.getresponse()
                body = response.read()
                if response.status == 200:
                    self.answers += 1
                else:
                    what = f"{response.status} {body[:100]!r}"
            except (OSError, http.client.HTTPException) as error:
                what = f"{type(error).__name__}: {error}"
            if what:
                self.failures.append(Failure(self.service, method, began, time.monotonic(), what))
            if what or method == "POST":
                connection.close()
        connection.close()
