"""Every exception that prefect-dstack raises on purpose.

```
PrefectDstackError                 exit code 1: something went wrong
├── UserError                      exit code 2: the caller has to change what they asked for
│   ├── ConfigurationError         a file, key or value that cannot be accepted
│   │   └── UnsupportedKeyError    understood, but nothing acts on it where it would be used
│   ├── NotFoundError              a service, gateway, fleet, secret or revision that does not exist
│   ├── ConflictError              a port, host name or path that something else already holds
│   ├── NoOfferError               no machine of any backend satisfies what was asked
│   │   └── NoRoomError            machines that would do have no room for it now
│   ├── ImageError                 a container image that cannot be pulled or started
│   ├── ReplicaExitedError         the workload ended instead of serving
│   └── ReplicaNotReadyError       the workload runs but did not pass its probes in time
├── HostError                      a machine that we hold or were given
│   ├── HostUnreachableError       no connection, or it was lost
│   ├── HostKeyError               its host key is unknown or not the pinned one
│   ├── HostAuthenticationError    it refused every credential
│   └── HostNotReadyError          connected, but something it needs is missing (Docker, rights, disk)
├── ProvisioningError              a backend that failed to give a machine
│   └── CapacityError              it has none left of that kind, for now
├── GatewayError                   a gateway that cannot be started, reached or changed
├── CertificateError               a certificate that cannot be issued, read or renewed
├── DeploymentError                a rollout that did not end well; the previous revision serves on
│   └── RejectedError              its evaluation rejected the new revision, which got no requests
├── RunFailedError                 a task that ended with another exit code than 0, or was stopped
└── OrchestratorError              the Prefect API, or a storage that it names, is missing or refuses
```
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "CapacityError",
    "CertificateError",
    "ConfigurationError",
    "ConflictError",
    "DeploymentError",
    "GatewayError",
    "HostAuthenticationError",
    "HostError",
    "HostKeyError",
    "HostNotReadyError",
    "HostUnreachableError",
    "ImageError",
    "NoOfferError",
    "NoRoomError",
    "NotFoundError",
    "OrchestratorError",
    "PrefectDstackError",
    "ProvisioningError",
    "RejectedError",
    "ReplicaExitedError",
    "ReplicaNotReadyError",
    "RunFailedError",
    "UnsupportedKeyError",
    "UserError",
]


E = TypeVar("E", bound="PrefectDstackError")


class PrefectDstackError(Exception):
    """Base class. `str()` is one line that a person can act on.

    Attributes:
        exit_code: What the command line exits with.
        details: What else there is to read, such as the last lines that a replica wrote. Tracebacks have it
            too.
    """

    exit_code = 1
    details: tuple[str, ...] = ()

    def with_details(self: E, lines: Iterable[str]) -> E:
        """Return this error with lines to read beside its message.

        Args:
            lines: The lines.

        Example:
            >>> error = ReplicaExitedError("hello-1-0: it exited with code 3").with_details(["no model"])
            >>> print(error.report)
            hello-1-0: it exited with code 3
                no model
        """
        self.details = tuple(lines)
        if self.details:
            self.add_note("\n".join(_indented(self.details)))
        return self

    @property
    def report(self) -> str:
        """The message, and below it the details, indented."""
        return "\n".join([str(self), *_indented(self.details)])

    def with_message(self: E, message: str) -> E:
        """Return the same error with another message, for more about the circumstances.

        Args:
            message: The whole new message.

        Returns:
            An error of the same class, with the same attributes, traceback and cause.

        Example:
            >>> error = ConfigurationError("unknown key", source="serve.dstack.yml", line=3, key="prot")
            >>> again = error.with_message(f"hello@2 failed: {error}; hello@1 serves on")
            >>> type(again).__name__, again.line, again.exit_code
            ('ConfigurationError', 3, 2)
        """
        error = _rebuild(type(self), (message,), vars(self).copy())
        error.__cause__, error.__context__ = self.__cause__, self.__context__
        error.__suppress_context__ = self.__suppress_context__
        return error.with_traceback(self.__traceback__)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling, which Prefect does to the exceptions of runs, whatever the constructor takes."""
        return (_rebuild, (type(self), self.args, vars(self).copy()))


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _rebuild(kind: type[E], args: tuple[Any, ...], attributes: dict[str, Any]) -> E:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(attributes)
    return error


class UserError(PrefectDstackError):
    """The caller can fix it by changing the request."""

    exit_code = 2


class ConfigurationError(UserError):
    """A configuration that cannot be accepted.

    Args:
        problem: What is wrong and what to do, without the place.
        source: The file (or `<text>`, `<mapping>`) that holds it.
        line: One-based line in `source`.
        key: Dotted path of the key, for example `probes.0.url`.

    Example:
        >>> str(ConfigurationError("unknown key", source="serve.dstack.yml", key="prot"))
        'serve.dstack.yml: prot: unknown key'
    """

    def __init__(
        self,
        problem: str,
        *,
        source: str | Path | None = None,
        line: int | None = None,
        key: str | None = None,
    ) -> None:
        self.problem = problem
        self.source = None if source is None else str(source)
        self.line = line
        self.key = key
        place = self.source or ""
        if place and line is not None:
            place += f":{line}"
        super().__init__(": ".join(part for part in (place, key or "", problem) if part))


class UnsupportedKeyError(ConfigurationError):
    """A key that is understood, but that nothing acts on where it would be used."""


class NotFoundError(UserError):
    """A service, gateway, fleet, secret or revision that does not exist."""


class ConflictError(UserError):
    """A port, host name or path that something else already holds."""


class NoOfferError(UserError):
    """No machine of any backend satisfies what was asked."""


class NoRoomError(NoOfferError):
    """Machines that would do have no room for it now."""


class ImageError(UserError):
    """A container image that cannot be pulled or started."""


class ReplicaExitedError(UserError):
    """The workload ended instead of serving."""


class ReplicaNotReadyError(UserError):
    """The workload runs but did not pass its probes in time."""


class HostError(PrefectDstackError):
    """A machine that we hold or were given cannot be used."""


class HostUnreachableError(HostError):
    """No connection to a host, or it was lost."""


class HostKeyError(HostError):
    """A host key that is unknown or not the pinned one."""


class HostAuthenticationError(HostError):
    """A host refused every credential."""


class HostNotReadyError(HostError):
    """Connected, but something the host needs is missing."""


class ProvisioningError(PrefectDstackError):
    """A backend failed to give a machine."""


class CapacityError(ProvisioningError):
    """A backend has no machine of that kind left, for now."""


class GatewayError(PrefectDstackError):
    """A gateway that cannot be started, reached or changed."""


class CertificateError(PrefectDstackError):
    """A certificate that cannot be issued, read or renewed."""


class DeploymentError(PrefectDstackError):
    """A rollout that did not end well; the previous revision serves on."""


class RejectedError(DeploymentError):
    """A new revision that did not pass its evaluation, and that got no requests."""


class RunFailedError(PrefectDstackError):
    """A task that ended with another exit code than 0, or was stopped.

    Args:
        message: Which task, and how it ended.
        exit_code: What the command line exits with: the task's own exit code.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class OrchestratorError(PrefectDstackError):
    """The Prefect API, or a storage that one of its blocks names, is missing or refuses."""
