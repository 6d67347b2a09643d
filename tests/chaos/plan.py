"""What a run does: operations, and the faults that strike during them, from a seed and nothing else."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SERVICES = ("alpha", "beta", "gamma")

# How often each comes, relative to the others.
OPERATIONS = {
    "edit": 5,
    "change-setting": 3,
    "break-start": 2,
    "break-probe": 1,
    "pipeline": 2,
    "worker": 2,
    "canary": 2,
    "scale": 3,
    "rollback": 3,
    "restart": 2,
    "stop": 2,
    "reconcile": 2,
    "create-token": 1,
    "revoke-token": 1,
    "task": 1,
}
# What may go wrong wherever replicas run: with commands, with Prefect and with the time.
EVERYWHERE = {
    "kill-command": 6,
    "kill-worker": 1,
    "kill-controller": 1,
    "kill-server": 1,
    "set-clock": 1,
}
ON_MACHINE = {
    **EVERYWHERE,
    "kill-replica": 3,
    "kill-supervisor": 2,
    "kill-haproxy": 2,
    "kill-haproxy-supervisor": 1,
    "suspend-replica": 2,
    "fill-disk": 2,
}
ON_HOSTS = {
    **EVERYWHERE,
    "kill-container": 3,
    "power-off": 3,
    "partition": 2,
    "cut-off": 2,
    "stop-ssh": 1,
    "kill-gateway": 1,
    "reboot-gateway": 1,
}
OF_SERVICES = {
    *("edit", "change-setting", "break-start", "break-probe", "pipeline", "worker"),
    *("canary", "scale", "rollback", "restart", "stop"),
}
LASTING = {
    *("kill-server", "suspend-replica", "fill-disk"),
    *("power-off", "partition", "cut-off", "stop-ssh", "reboot-gateway"),
}

# A deployment tells its progress in about so many lines.
MOST_LINES = 12


@dataclass(frozen=True)
class Operation:
    """What somebody asks for.

    Attributes:
        kind: One of `OPERATIONS`.
        service: Of which service; empty: of none.
        number: Of replicas, or what tells one version from another.
    """

    kind: str
    service: str = ""
    number: int = 0

    def __str__(self) -> str:
        return " ".join(filter(None, [self.kind, self.service, str(self.number or "")]))


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        kind: One of `ON_MACHINE` or `ON_HOSTS`.
        service: Whose replica it concerns.
        lines: It strikes when the operations have told so many lines of progress, or have ended.
        delay: Seconds later than that.
        seconds: How long it lasts, if it passes by itself.
    """

    kind: str
    service: str
    lines: int
    delay: float
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds} s" if self.seconds else ""
        return f"{self.kind} ({self.service}){lasting} after {self.lines} lines + {self.delay} s"


@dataclass(frozen=True)
class Turn:
    """Operations that begin at once, and the fault that strikes during them."""

    operations: tuple[Operation, ...]
    fault: Fault | None = None

    def __str__(self) -> str:
        return (
            f"{' | '.join(map(str, self.operations)) or 'nothing'}{f'  <<  {self.fault}' * bool(self.fault)}"
        )


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        seed: What it was made from.
        controller: Whether a controller watches meanwhile, and repairs in the end.
        turns: One after the other.
    """

    seed: int
    controller: bool
    turns: tuple[Turn, ...]

    def __str__(self) -> str:
        watched = "with" if self.controller else "without"
        turns = (f"  {number}: {turn}" for number, turn in enumerate(self.turns))
        return "\n".join([f"seed {self.seed}, {watched} a controller:", *turns])


def plan(seed: int, turns: int, faults: Mapping[str, int]) -> Plan:
    """Make the plan of a run.

    Args:
        seed: Equal seeds make equal plans.
        turns: How many turns follow the first deployments.
        faults: What may go wrong, and how often each does, relative to the others.
    """
    chance = random.Random(seed)
    first = Turn(tuple(Operation("edit", service, 1) for service in SERVICES[:2]))
    second = Turn((Operation("edit", SERVICES[2], 1),), _fault(chance, (), faults))
    changed: set[str] = set()
    rest = (_turn(chance, number, changed, faults) for number in range(2, turns + 2))
    return Plan(seed, chance.random() < 0.5, (first, second, *rest))


def _turn(chance: random.Random, number: int, changed: set[str], faults: Mapping[str, int]) -> Turn:
    count = chance.choices((0, 1, 2), (1, 6, 3))[0]
    operations = tuple(_operation(chance, 10 * number + index, changed) for index in range(count))
    return Turn(
        operations, _fault(chance, operations, faults) if count == 0 or chance.random() < 0.8 else None
    )


def _operation(chance: random.Random, version: int, changed: set[str]) -> Operation:
    (kind,) = chance.choices(list(OPERATIONS), list(OPERATIONS.values()))
    service = chance.choice(SERVICES) if kind in OF_SERVICES else ""
    if kind == "rollback" and service not in changed:
        kind = "edit"  # there is nothing yet to go back to
    if kind == "edit":
        changed.add(service)
    return Operation(kind, service, chance.randint(1, 3) if kind == "scale" else version)


def _fault(chance: random.Random, operations: Sequence[Operation], faults: Mapping[str, int]) -> Fault:
    kinds = [kind for kind in faults if operations or kind != "kill-command"]
    (kind,) = chance.choices(kinds, [faults[kind] for kind in kinds])
    concerned = [operation.service for operation in operations if operation.service]
    return Fault(
        kind,
        chance.choice(concerned) if concerned and chance.random() < 0.7 else chance.choice(SERVICES),
        chance.randint(0, MOST_LINES),
        round(chance.choice((0.0, chance.uniform(0, 1.5))), 2),
        round(chance.uniform(1, 5), 1) if kind in LASTING else 0.0,
    )
