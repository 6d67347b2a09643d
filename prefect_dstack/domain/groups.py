"""Groups of replicas: which numbers the replicas of each have, and what they run. Decisions.

The numbers of a revision's replicas go round its groups: of three, the first has 0, 3, 6, the second 1, 4, 7
and so on. So each of them can grow without a number of another changing its meaning, and the number of a
replica tells its group. A service without groups is one group, whose name is empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prefect_dstack.configurations import ReplicaGroup, ServiceConfiguration

__all__ = [
    "group_configurations",
    "group_name",
    "group_names",
    "is_scaled",
    "may_be_interrupted",
    "replica_numbers",
    "router_group",
]

# What a group may say for itself, and then it says it in the place of the service.
OF_GROUPS = ("docker", "image", "nvcc", "privileged", "python", "spot_policy")


def group_names(configuration: ServiceConfiguration | Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the groups of a service, in their order.

    Args:
        configuration: The service, or the keys that one was recorded with.

    Returns:
        The names, positions where none is given; one empty name for a service without groups.
    """
    if isinstance(configuration, ServiceConfiguration):
        return tuple(configuration.group_names) or ("",)
    groups = enumerate(_recorded(configuration))
    return tuple(group.get("name") or str(index) for index, group in groups) or ("",)


def router_group(configuration: ServiceConfiguration | Mapping[str, Any]) -> str | None:
    """Return the name of the group that routes the requests of a service to the others; None: there is none.

    Args:
        configuration: The service, or the keys that one was recorded with.
    """
    if isinstance(configuration, ServiceConfiguration):
        routes = [group.router is not None for group in configuration.replica_groups]
    else:
        routes = [group.get("router") is not None for group in _recorded(configuration)]
    names = group_names(configuration)
    return names[routes.index(True)] if any(routes) else None


def is_scaled(keys: Mapping[str, Any]) -> bool:
    """Return whether the replicas of a service, or of one of its groups, follow its load.

    Args:
        keys: The keys that it was recorded with.
    """
    return any(part.get("scaling") is not None for part in (keys, *_recorded(keys)))


def may_be_interrupted(keys: Mapping[str, Any]) -> bool:
    """Return whether replicas of a service, or of one of its groups, may run on spot machines.

    Args:
        keys: The keys that it was recorded with.
    """
    return any(part.get("spot_policy") in ("spot", "auto") for part in (keys, *_recorded(keys)))


def _recorded(keys: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    older = keys.get("replicas")
    groups: Sequence[Mapping[str, Any]] = keys.get("groups") or (older if isinstance(older, list) else ())
    return groups


def group_name(names: Sequence[str], number: int) -> str:
    """Return the group of a replica.

    Args:
        names: The names of all groups of its revision.
        number: The number of the replica.
    """
    return names[number % len(names)]


def replica_numbers(counts: Sequence[int], preferred: Collection[int] = ()) -> tuple[int, ...]:
    """Return the numbers of the replicas of a service, in order: in each group the lowest that are free.

    Args:
        counts: How many there are in each group.
        preferred: Numbers that are taken before lower ones.

    Example:
        >>> replica_numbers([1, 3, 2])
        (0, 1, 2, 4, 5, 7)
        >>> replica_numbers([3], preferred=[1, 4])
        (0, 1, 4)
    """
    numbers: list[int] = []
    for index, count in enumerate(counts):
        taken = sorted(number for number in set(preferred) if number % len(counts) == index)[:count]
        free = (number for number in itertools.count(index, len(counts)) if number not in taken)
        numbers += [*taken, *itertools.islice(free, count - len(taken))]
    return tuple(sorted(numbers))


def group_configurations(configuration: ServiceConfiguration) -> tuple[ServiceConfiguration, ...]:
    """Return what the replicas of each group run, as a service without groups.

    Args:
        configuration: The service.

    Returns:
        The service itself if it has no groups; else one for each, with what the group says in the place of
        what the service says.
    """
    groups = configuration.replica_groups
    return tuple(_of_group(configuration, group) for group in groups) or (configuration,)


def _of_group(configuration: ServiceConfiguration, group: ReplicaGroup) -> ServiceConfiguration:
    own = {key: getattr(group, key) for key in OF_GROUPS if getattr(group, key) is not None}
    if "resources" in group.model_fields_set:
        own["resources"] = group.resources
    return configuration.model_copy(
        update={"commands": group.commands, "groups": None, "replicas": group.range, **own}
    )
