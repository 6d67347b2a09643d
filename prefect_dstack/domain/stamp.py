"""The stamp on everything that is created for a service, by which it is found again."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Stamp"]

PREFIX = "prefect-dstack"


class Stamp(BaseModel):
    """Says for whom something was created. It goes into the very call that creates it.

    Example:
        >>> Stamp(service="hello", revision=3, replica=0).labels()["prefect-dstack.service"]
        'hello'
    """

    model_config = ConfigDict(frozen=True)

    service: str = Field(description="The name of the service.")
    revision: int = Field(ge=1, description="The revision of the service.")
    replica: int = Field(ge=0, description="Which replica of the revision, counted from 0.")
    flow_run: str = Field(default="", description="The id of the flow run that created it.")
    machine: str = Field(
        default="",
        description="The identity of the machine that it belongs to; empty on machines that many deploy to.",
    )

    @property
    def name(self) -> str:
        """The replica's name: `hello-3-0`, the first replica of `hello@3`."""
        return f"{self.service}-{self.revision}-{self.replica}"

    def labels(self, separator: str = ".") -> dict[str, str]:
        """Return the stamp as labels or tags.

        Args:
            separator: What stands between `prefect-dstack` and the rest: `.` for Docker, `:` for AWS.

        Returns:
            The labels, all of them strings.
        """
        return {
            f"{PREFIX}{separator}service": self.service,
            f"{PREFIX}{separator}revision": str(self.revision),
            f"{PREFIX}{separator}replica": str(self.replica),
            f"{PREFIX}{separator}flow-run": self.flow_run,
            **({f"{PREFIX}{separator}machine": self.machine} if self.machine else {}),
        }

    @classmethod
    def from_labels(cls, labels: Mapping[str, str], separator: str = ".") -> Stamp | None:
        """Read a stamp back.

        Args:
            labels: Labels or tags, other ones among them.
            separator: As in `labels`.

        Returns:
            The stamp, or None if there is none.
        """
        try:
            return cls(
                service=labels[f"{PREFIX}{separator}service"],
                revision=int(labels[f"{PREFIX}{separator}revision"]),
                replica=int(labels[f"{PREFIX}{separator}replica"]),
                flow_run=labels.get(f"{PREFIX}{separator}flow-run", ""),
                machine=labels.get(f"{PREFIX}{separator}machine", ""),
            )
        except (KeyError, ValueError):
            return None
