"""Totals over all processes of a gateway: exact, and they never fall."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_dstack.gateways.counters import (
    CODES,
    Ledger,
    ProcessSample,
    Row,
    departed_with,
    read_departed,
)
from prefect_dstack.gateways.latency import Durations, Tally
from prefect_dstack.gateways.servers import SUCCESSOR

REPLICAS = ("chat-1-0", "chat-1-1", "chat-2-0")


class HAProxy:
    """Counts as HAProxy does: a replica when an answer begins, the service when it has ended."""

    def __init__(self) -> None:
        self.process = 0
        self.lives: dict[int, tuple[dict[str, Counter[str]], Counter[str]]] = {}
        self.open: list[tuple[int, str]] = []
        self.departed: bytes | None = None
        self.truth: dict[tuple[str, str], int] = Counter()
        self.took: dict[int, dict[str, dict[int, Tally]]] = {}
        self.taken: dict[str, Durations] = {}
        self.reload()

    def reload(self) -> None:
        self.process += 1
        self.lives[self.process] = ({}, Counter())
        self.took[self.process] = {}

    def begin(self, replica: str, code: str) -> None:
        self.lives[self.process][0].setdefault(replica, Counter())[code] += 1
        self.open.append((self.process, code))
        bucket = CODES.index(code)
        tallies = self.took[self.process].setdefault(replica, {})
        answers, units = tallies.get(bucket, Tally())
        tallies[bucket] = Tally(answers + 1, units + 10 * bucket)
        if replica != SUCCESSOR:
            self.truth[replica, code] += 1
            taken = self.taken.setdefault(replica, Durations())
            taken.add(Durations(Counter({bucket: 1}), 10 * bucket))

    def end(self, process: int | None = None) -> None:
        for index, (whose, code) in enumerate(self.open):
            if process in (None, whose):
                self.lives[whose][1][code] += 1
                del self.open[index]
                return

    def answer_itself(self, code: str) -> None:
        self.lives[self.process][1][code] += 1
        self.truth["", code] += 1

    def remove(self, replica: str) -> None:
        counters = self.lives[self.process][0].get(replica)
        if counters is not None:
            server = f"chat/{replica}"
            self.departed = departed_with(self.departed, self.process, self.lives, server, counters)
            del self.lives[self.process][0][replica]

    def samples(self) -> list[ProcessSample]:
        def row(counters: Counter[str]) -> Row:
            return Row({name: counters[name] for name in (*CODES, "sent")})

        return [
            ProcessSample(
                process,
                process == self.process,
                {"chat": row(whole)},
                {"chat": {name: row(counters) for name, counters in servers.items()}},
                durations={"chat": {name: dict(its) for name, its in self.took[process].items()}},
            )
            for process, (servers, whole) in self.lives.items()
        ]


ACTIONS = st.one_of(
    st.tuples(st.just("begin"), st.sampled_from([*REPLICAS, SUCCESSOR]), st.sampled_from(CODES)),
    st.tuples(st.just("end")),
    st.tuples(st.just("answer_itself"), st.sampled_from(["4xx", "5xx"])),
    st.tuples(st.just("remove"), st.sampled_from(REPLICAS)),
    st.tuples(st.just("look")),
    st.tuples(st.just("reload")),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTIONS, max_size=60))
def test_totals_are_exact_in_the_end_and_never_fall(actions: list[tuple[str, ...]]) -> None:
    haproxy, ledger = HAProxy(), Ledger()
    before: dict[tuple[str, str], Counter[str]] = {}

    def look() -> None:
        nonlocal before
        ledger.take(haproxy.samples(), read_departed(haproxy.departed))
        for key, counters in before.items():
            assert all(ledger.totals[key][name] >= value for name, value in counters.items())
        before = {key: Counter(counters) for key, counters in ledger.totals.items()}

    for action, *arguments in actions:
        if action == "look":
            look()
        else:
            getattr(haproxy, action)(*arguments)
    while haproxy.open:
        haproxy.end()
    for _ in range(2):
        look()

    found = {
        (replica, code): counters[code]
        for (_, replica), counters in ledger.totals.items()
        for code in CODES
        if counters[code]
    }
    assert found == {key: number for key, number in haproxy.truth.items() if number}
    assert ledger.durations == {("chat", replica): taken for replica, taken in haproxy.taken.items()}


def test_a_process_with_a_number_that_was_used_before_counts_from_the_beginning() -> None:
    ledger = Ledger()
    row = Row(dict.fromkeys(CODES, 5))
    first = [ProcessSample(7, current=True, services={"chat": row}, replicas={"chat": {"chat-1-0": row}})]

    ledger.take(first, {})
    ledger.take([], {})
    ledger.take(first, {})

    assert ledger.totals["chat", "chat-1-0"]["2xx"] == 10


def test_a_replica_that_is_forgotten_has_no_totals_any_more() -> None:
    ledger, row = Ledger(), Row(dict.fromkeys(CODES, 5))
    took = {"chat": {"chat-1-0": {3: Tally(25, 100)}}}
    ledger.take([ProcessSample(7, True, {"chat": row}, {"chat": {"chat-1-0": row}}, durations=took)], {})

    ledger.forget("chat", "chat-1-0")

    assert list(ledger.totals) == [("chat", "")]
    assert ledger.durations == {}


def test_held_requests_are_added_up_over_processes() -> None:
    ledger = Ledger()

    for process, ever in ((1, 3), (1, 4), (2, 2)):
        sample = ProcessSample(process, current=True, services={}, replicas={}, held={"chat": (1, ever)})
        ledger.take([sample], {})

    assert ledger.held == {"chat": 6}


def test_what_is_known_of_processes_that_are_gone_is_forgotten() -> None:
    data = departed_with(b"{damaged", 1, [1], "chat/chat-1-0", {"2xx": 3})
    data = departed_with(data, 1, [1, 2], "chat/chat-1-0", {"2xx": 4})
    assert read_departed(data) == {"1": {"chat/chat-1-0": {"2xx": 7}}}

    data = departed_with(data, 2, [2], "chat/chat-2-0", {"2xx": 1})

    assert read_departed(data) == {"2": {"chat/chat-2-0": {"2xx": 1}}}
