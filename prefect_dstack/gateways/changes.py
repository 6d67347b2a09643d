"""What it takes to get a running gateway from one state to another: pure, tested as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prefect_dstack.gateways.quoting import word
from prefect_dstack.gateways.servers import balance, needs_reload, server, server_name
from prefect_dstack.gateways.state import GatewayState, Route, RouteReplica
from prefect_dstack.gateways.template import loaded_maps, maps

__all__ = ["DELETE", "Changes", "Command", "changes"]

# A server is only let go once its connections are closed.
DELETION_PATIENCE = 5.0
DELETE = "del server "


@dataclass(frozen=True)
class Command:
    """One command of HAProxy's runtime API.

    Attributes:
        text: The command.
        answer: What HAProxy says when it has done it.
        patience: Seconds for which it is tried again while the answer is another.
    """

    text: str
    answer: str = ""
    patience: float = 0.0


@dataclass(frozen=True)
class Changes:
    """Either a reload, or commands that come to the same.

    Attributes:
        reload: Whether the configuration must be read anew.
        commands: What to run instead, in this order.
    """

    reload: bool = False
    commands: tuple[Command, ...] = ()


def changes(old: GatewayState, new: GatewayState) -> Changes:
    """Plan how a running gateway follows its state.

    Replicas, weights, tokens and challenges change through the runtime API; all else needs a reload, and so
    do new replicas on other hosts whose checks do not tell whether the host is gone.

    Args:
        old: The state it runs with.
        new: The state it is to have.

    Returns:
        The reload or the commands; nothing of both if nothing changed.
    """
    if _settings(old) != _settings(new) or any(needs_reload(*added) for added in _added(old, new)):
        return Changes(reload=True)
    return Changes(commands=(*_map_commands(old, new), *_server_commands(old, new)))


def _settings(state: GatewayState) -> GatewayState:
    """What is only read from the configuration."""
    return state.model_copy(
        update={
            "tokens": {},
            "challenges": {},
            "routes": {
                name: (_route_settings(route), balance(route)) for name, route in state.routes.items()
            },
        }
    )


def _route_settings(route: Route) -> Route:
    return route.model_copy(update={"tokens": {}, "replicas": {}})


def _added(old: GatewayState, new: GatewayState) -> Iterator[tuple[RouteReplica, Route]]:
    for name, route in new.routes.items():
        known = old.routes[name].replicas
        for replica in route.replicas.values():
            before = known.get(replica.name)
            if before is None or _identity(before) != _identity(replica):
                yield replica, route


def _map_commands(old: GatewayState, new: GatewayState) -> Iterator[Command]:
    before, after = maps(old), maps(new)
    for name in sorted(loaded_maps(new)):
        entries = after[name]
        for key in before[name].keys() - entries.keys():
            yield Command(f"del map {name} {word(key)}")
        for key, value in entries.items():
            if key not in before[name]:
                yield Command(f"add map {name} {word(key)} {word(value)}")
            elif before[name][key] != value:
                yield Command(f"set map {name} {word(key)} {word(value)}")


def _server_commands(old: GatewayState, new: GatewayState) -> Iterator[Command]:
    """New servers first, so that a service is never without."""
    leaving: list[Command] = []
    for name, route in new.routes.items():
        known = old.routes[name].replicas
        if known is route.replicas:
            continue
        for replica in route.replicas.values():
            before = known.get(replica.name)
            if before is None:
                yield from _add(replica, route)
            elif _identity(before) != _identity(replica):
                yield from _delete(before, route)
                yield from _add(replica, route)
            elif before.effective_weight != replica.effective_weight:
                weight = f"set server {server_name(name, replica.name)} weight {replica.effective_weight}"
                yield Command(weight)
        for replica in known.values():
            if replica.name not in route.replicas:
                leaving += _delete(replica, route)
    yield from leaving


def _identity(replica: RouteReplica) -> RouteReplica:
    return replica.model_copy(update={"weight": 0, "state": "ready", "direct": True})


def _add(replica: RouteReplica, route: Route) -> Iterator[Command]:
    name = server_name(route.service, replica.name)
    yield Command(f"add server {name} {server(replica, route)}", answer="New server registered.")
    if replica.checked:
        yield Command(f"enable health {name}")
    yield Command(f"enable server {name}")


def _delete(replica: RouteReplica, route: Route) -> Iterator[Command]:
    """Whoever wants requests under way to finish waits for that before; the rest is cut here."""
    name = server_name(route.service, replica.name)
    yield Command(f"disable server {name}")
    yield Command(f"shutdown sessions server {name}")
    yield Command(f"{DELETE}{name}", answer="Server deleted.", patience=DELETION_PATIENCE)
