"""Where a gateway lives: this machine, or a host. What is common to all places is elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol

from prefect_dstack.gateways.runtime import Connection

__all__ = ["Place"]


class Place(Protocol):
    """A private directory with HAProxy's files, and the HAProxy that reads them.

    HAProxy is started in that directory as `haproxy -W -db -S <master socket>,mode,600 -f haproxy.cfg`, and
    kept running by something that outlives whoever started it.
    """

    @property
    def name(self) -> str:
        """What messages call it, for example `gateway 'local' on this machine`."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Keep other deployers away while the gateway is changed.

        Raises:
            GatewayError: If somebody else holds it for too long.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """Read a file of the directory.

        Args:
            name: Its name, perhaps with a directory before it.

        Returns:
            What it holds; None if there is none.
        """
        ...

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files in the order given, each atomically and readable by its owner only.

        Args:
            files: Contents by name; directories in names are made.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file, unless it is gone already."""
        ...

    def check(self, configuration: bytes) -> None:
        """Have HAProxy read a configuration, beside the other files, without using it.

        Args:
            configuration: What `haproxy.cfg` would hold.

        Raises:
            GatewayError: With HAProxy's own words, if it refuses it.
        """
        ...

    def running(self) -> bool:
        """Return whether HAProxy is there, or about to be back."""
        ...

    def start(self) -> None:
        """Start HAProxy, unless it is running. It need not be ready yet.

        Raises:
            GatewayError: If it cannot be started.
        """
        ...

    def stop(self) -> None:
        """Stop HAProxy; connections are cut."""
        ...

    def hold(self, timeout: float) -> Connection:
        """Open a connection to the HAProxy that serves now: after a reload, it stays until that is closed.

        Args:
            timeout: Seconds that connecting may take.

        Raises:
            OSError: If it cannot be reached.
        """
        ...

    def connect(self, timeout: float) -> Connection:
        """Connect to the master socket.

        Args:
            timeout: Seconds that connecting, and each wait for an answer, may take.

        Raises:
            OSError: If nothing listens there.
        """
        ...

    def log(
        self, *, tail: int | None = None, follow: bool = False, since: datetime | None = None
    ) -> Iterator[str]:
        """Read what HAProxy writes: what it reports, and the access logs of services.

        Args:
            tail: Only so many lines from the end; None: all that is kept.
            follow: Go on with what it writes from now, until it is stopped.
            since: Only what was written since then; None: all that is kept.

        Yields:
            Lines without their end.
        """
        ...

    def port_is_free(self, port: int, address: str) -> bool:
        """Return whether no program listens on a port there.

        Args:
            port: The port.
            address: `127.0.0.1`, or `*` for every address.
        """
        ...

    def destroy(self) -> None:
        """Stop HAProxy and remove all that the gateway has there."""
        ...
