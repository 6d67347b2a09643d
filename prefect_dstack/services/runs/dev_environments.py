"""What lasts while a development environment runs: its SSH entry, and whether anybody is connected."""

from __future__ import annotations

import threading
import time

from prefect_dstack.configurations import DevEnvironmentConfiguration
from prefect_dstack.controller.convergence import Log
from prefect_dstack.domain.dev_environments import how_to_enter, ready_line
from prefect_dstack.domain.task_nodes import RunOutcome
from prefect_dstack.errors import ConfigurationError, PrefectDstackError
from prefect_dstack.hosts.ssh_entry import add_entry, remove_entry
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.runtimes.entering import Entrance
from prefect_dstack.services.runs.entering import ssh_entry

__all__ = ["Stay"]

# How often it is asked whether anybody is connected, in seconds.
LOOK = 2.0


class Stay:
    """The part of a run that tasks do not have.

    Args:
        configuration: The development environment; it has a name.
        infrastructure: Where it runs.
        log: Told how it is entered.
    """

    def __init__(
        self, configuration: DevEnvironmentConfiguration, infrastructure: Infrastructure, log: Log
    ) -> None:
        self._configuration, self._infrastructure, self._log = configuration, infrastructure, log
        limit = configuration.inactivity_duration
        self._patience = None if limit in (None, "off") else float(limit)
        self._ready = threading.Event()
        self._line = ready_line(configuration.name or "")
        self._seen = self._looked = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether its `init` commands have succeeded."""
        return self._ready.is_set()

    def read(self, line: str) -> None:
        """Notice a line that it has written."""
        if line.endswith(self._line):
            self._ready.set()

    def begin(self) -> None:
        """Add the entry with which `ssh NAME` reaches it."""
        name = self._configuration.name or ""
        self._seen = time.monotonic()
        try:
            add_entry(ssh_entry(name, self._infrastructure.home), self._infrastructure.home)
        except ConfigurationError as error:
            self._log.warning("%s; prefect-dstack ssh %s enters it without that", error, name)

    def announce(self, directory: str) -> None:
        """Log how it is entered.

        Args:
            directory: Where its sessions begin.
        """
        for line in how_to_enter(self._configuration, directory):
            self._log.info("%s", line)

    def end(self) -> None:
        """Remove the entry, now that it is gone."""
        try:
            remove_entry(self._configuration.name or "", self._infrastructure.home)
        except ConfigurationError as error:
            self._log.warning("%s", error)

    def look(self, entrance: Entrance) -> RunOutcome | None:
        """Return how it ends if nobody was connected for too long; None while it goes on.

        Args:
            entrance: The way into it.
        """
        moment = time.monotonic()
        if self._patience is None or moment - self._looked < LOOK:
            return None
        self._looked = moment
        try:
            used = entrance.is_in_use()
        except (PrefectDstackError, OSError):
            return None  # who cannot be asked may be in use
        if used:
            self._seen = moment
        if moment - self._seen < self._patience:
            return None
        return RunOutcome(0, f"nobody was connected for {self._patience:.0f} s")
