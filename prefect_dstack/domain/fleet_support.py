"""Which keys of a fleet are acted on. To act on a key, delete its line."""

from __future__ import annotations

from prefect_dstack.configurations import FleetConfiguration
from prefect_dstack.errors import UnsupportedKeyError

__all__ = ["check_fleet_support"]

OF_CLOUDS = "is for fleets of a cloud, from which services take machines by themselves; remove it"

NEVER = {
    "availability_zones": OF_CLOUDS,
    "backend_options": OF_CLOUDS,
    "backends": OF_CLOUDS,
    "env": "is for the set-up of a machine, and hosts are used as they are; use 'env' of the service",
    "idle_duration": OF_CLOUDS,
    "instance_types": OF_CLOUDS,
    "max_price": OF_CLOUDS,
    "nodes": OF_CLOUDS,
    "regions": OF_CLOUDS,
    "reservation": OF_CLOUDS,
    "resources": OF_CLOUDS,
    "retry": OF_CLOUDS,
    "spot_policy": OF_CLOUDS,
    "tags": OF_CLOUDS,
    "termination_idle_time": OF_CLOUDS,
    "termination_policy": OF_CLOUDS,
}
ACTED_ON = frozenset(FleetConfiguration.model_fields) - NEVER.keys()


def check_fleet_support(configuration: FleetConfiguration) -> None:
    """Refuse a fleet of which anything would be ignored.

    Args:
        configuration: The fleet.

    Raises:
        UnsupportedKeyError: For the first such key.
    """
    for key in sorted(configuration.model_fields_set & NEVER.keys()):
        if getattr(configuration, key) not in (None, (), [], {}, False):
            raise UnsupportedKeyError(
                NEVER[key], source=configuration.source_name, line=configuration.line_of(key), key=key
            )
