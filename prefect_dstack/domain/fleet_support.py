"""Which keys of a fleet are acted on."""

from __future__ import annotations

from prefect_dstack.configurations import FleetConfiguration
from prefect_dstack.errors import UnsupportedKeyError

__all__ = ["check_fleet_support"]

ACTED_ON = frozenset({"type", "name", "ssh_config", "blocks", "placement"})


def check_fleet_support(configuration: FleetConfiguration) -> None:
    """Refuse a fleet of which anything would be ignored.

    Args:
        configuration: The fleet.

    Raises:
        UnsupportedKeyError: For the first such key.
    """
    for key in sorted(configuration.model_fields_set - ACTED_ON):
        if getattr(configuration, key) not in (None, (), [], {}, False):
            raise UnsupportedKeyError(
                "is for fleets of a cloud, from which services take machines by themselves; remove it",
                source=configuration.source_name,
                line=configuration.line_of(key),
                key=key,
            )
