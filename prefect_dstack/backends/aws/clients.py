"""Calls to AWS: clients that notice new credentials, and patience that is ours to see."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3
from botocore.config import Config

from prefect_dstack.backends.aws.errors import (
    EXPIRED,
    AwsError,
    code_of,
    is_throttling,
    is_transient,
    translate,
)
from prefect_dstack.backends.aws.settings import AwsSettings
from prefect_dstack.backends.base import Report

__all__ = ["Aws", "SessionFactory", "quiet"]

SessionFactory = Callable[[str], boto3.Session]
"""Makes a session for a region; called again now and then, so that an assumed role is assumed anew."""

# The shortest life of an assumed role is 900 seconds.
CLIENT_AGE = 300.0
ATTEMPTS = 9
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 20.0

# One attempt: botocore repeats InsufficientInstanceCapacity (it comes as a 500), and would hide it.
CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 1},
    connect_timeout=10,
    read_timeout=60,
    max_pool_connections=32,
)


def quiet(_: str) -> None:
    """Ignore a line of progress."""


class Aws:
    """The APIs of one account.

    Args:
        settings: Of the account.
        session: Makes boto3 sessions.
        pause: Waits between two attempts; takes seconds.
    """

    def __init__(
        self, settings: AwsSettings, session: SessionFactory, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.settings = settings
        self.pause = pause
        self._session = session
        self._clients: dict[tuple[str, str], tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self._account: str | None = None

    @property
    def account(self) -> str:
        """The number of the account that the credentials belong to."""
        if self._account is None:
            self._account = str(self.call(self.settings.regions[0], "sts", "get_caller_identity")["Account"])
        return self._account

    def known_regions(self) -> set[str]:
        """Return the regions that the installed botocore knows, of every partition."""
        session = self._session(self.settings.regions[0])
        partitions = session.get_available_partitions()
        return {name for part in partitions for name in session.get_available_regions("ec2", part)}

    def client(self, region: str, service: str) -> Any:
        """Return a client of at most `CLIENT_AGE` seconds."""
        # Making clients is not thread-safe in boto3; using them is.
        with self._lock:
            made, client = self._clients.get((region, service), (0.0, None))
            if client is None or time.monotonic() - made > CLIENT_AGE:
                client = self._session(region).client(
                    service, region_name=region, config=CONFIG, endpoint_url=self.settings.endpoint_url
                )
                self._clients[region, service] = (time.monotonic(), client)
            return client

    def once(
        self, region: str, service: str, operation: str, report: Report = quiet, **parameters: Any
    ) -> dict[str, Any]:
        """Call an operation; only throttling and expired credentials are overcome here.

        Args:
            region: Where.
            service: For example `ec2`.
            operation: In snake case, for example `run_instances`.
            report: Told of each pause.
            parameters: Of the operation.

        Returns:
            AWS's answer.

        Raises:
            ClientError: What AWS answers otherwise.
            BotoCoreError: If there is no answer.
        """
        return self._attempt(region, service, operation, parameters, is_throttling, report)

    def call(
        self, region: str, service: str, operation: str, report: Report = quiet, **parameters: Any
    ) -> dict[str, Any]:
        """Call an operation that may be repeated: one that only reads, or that does nothing the second time.

        Args:
            region: Where.
            service: For example `ec2`.
            operation: In snake case, for example `describe_instances`.
            report: Told of each pause.
            parameters: Of the operation.

        Returns:
            AWS's answer.

        Raises:
            ProvisioningError: With AWS's words.
        """
        try:
            return self._attempt(region, service, operation, parameters, is_transient, report)
        except AwsError as error:
            raise translate(error, f"{_camel(operation)} in {region}") from error

    def pages(
        self, region: str, service: str, operation: str, key: str, **parameters: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield the entries under `key` of every page of an answer, each page with the patience of `call`."""
        while True:
            page = self.call(region, service, operation, **parameters)
            yield from page.get(key) or ()
            token = page.get("NextToken")
            if not token:
                return
            parameters["NextToken"] = token

    def _attempt(
        self,
        region: str,
        service: str,
        operation: str,
        parameters: dict[str, Any],
        again: Callable[[BaseException], bool],
        report: Report,
    ) -> dict[str, Any]:
        renewed = False
        attempt = 0
        while True:
            client = self.client(region, service)
            try:
                answer: dict[str, Any] = getattr(client, operation)(**parameters)
                return answer
            except AwsError as error:
                if code_of(error) in EXPIRED and not renewed:
                    renewed = True
                    self._forget_clients()
                    continue
                attempt += 1
                if not again(error) or attempt == ATTEMPTS:
                    raise
                seconds = pause_before(attempt)
                report(f"aws: {region}: {_camel(operation)}: {code_of(error)}, again in {seconds:.1f} s")
            self.pause(seconds)

    def _forget_clients(self) -> None:
        with self._lock:
            self._clients.clear()


def pause_before(attempt: int) -> float:
    """Return the seconds to wait after so many failed attempts, jittered: ten must not return at once."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (attempt - 1))
    return longest * (0.5 + random.random() / 2)  # noqa: S311 - no secret depends on it


def _camel(operation: str) -> str:
    return "".join(part.title() for part in operation.split("_"))
