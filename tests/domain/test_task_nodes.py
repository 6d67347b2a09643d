"""Which nodes a task has, in which order they start, and when its run is over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.configurations import TaskConfiguration, load_configuration
from prefect_dstack.domain.task_nodes import (
    NodePlan,
    RunOutcome,
    node_facts,
    plan_nodes,
    run_outcome,
    start_waves,
)

GROUPS = [
    {"name": "head", "nodes": 1, "commands": ["head"], "ports": [6379], "resources": {"memory": "4GB"}},
    {"name": "workers", "nodes": 2, "commands": ["work"], "ports": [8000], "resources": {"memory": "8GB"}},
]


def task(**keys: Any) -> TaskConfiguration:
    configuration = load_configuration({"type": "task", "image": "app", **keys}, name="train")
    assert isinstance(configuration, TaskConfiguration)
    return configuration


def nodes(count: int) -> list[NodePlan]:
    return plan_nodes(task(commands=["run"], nodes=count))


class TestPlan:
    def test_a_task_has_one_node(self) -> None:
        (node,) = plan_nodes(task(commands=["run"], ports=[8000]))

        assert (node.rank, node.group, node.number) == (0, None, 0)
        assert [port.container_port for port in node.ports] == [8000]

    def test_ports_lead_to_the_master(self) -> None:
        planned = plan_nodes(task(commands=["run"], nodes=3, ports=[8000]))

        assert [node.rank for node in planned] == [0, 1, 2]
        assert [len(node.ports) for node in planned] == [1, 0, 0]

    def test_ranks_go_on_from_group_to_group(self) -> None:
        planned = plan_nodes(task(groups=GROUPS))

        assert [(node.rank, node.group, node.number) for node in planned] == [(0, 0, 0), (1, 1, 0), (2, 1, 1)]
        assert [[port.container_port for port in node.ports] for node in planned] == [[6379], [8000], []]
        memory = [node.resources.memory for node in planned]
        assert memory[1] == memory[2] != memory[0]


class TestOrder:
    @pytest.mark.parametrize(
        ("order", "ranks"),
        [
            (None, [[0, 1, 2]]),
            ("any", [[0, 1, 2]]),
            ("master-first", [[0], [1, 2]]),
            ("workers-first", [[1, 2], [0]]),
        ],
    )
    def test_nodes_start_in_waves(self, order: str | None, ranks: list[list[int]]) -> None:
        assert [[node.rank for node in wave] for wave in start_waves(nodes(3), order)] == ranks

    @given(count=st.integers(1, 20), order=st.sampled_from([None, "any", "master-first", "workers-first"]))
    def test_every_node_starts_once_and_no_wave_is_empty(self, count: int, order: str | None) -> None:
        waves = start_waves(nodes(count), order)

        assert sorted(node.rank for wave in waves for node in wave) == list(range(count))
        assert all(waves)


def test_a_node_knows_its_place() -> None:
    assert node_facts(1, ["10.0.0.1", "10.0.0.2"], [8, 4]) == {
        "DSTACK_NODE_RANK": "1",
        "DSTACK_NODES_NUM": "2",
        "DSTACK_NODES_IPS": "10.0.0.1\n10.0.0.2",
        "DSTACK_MASTER_NODE_IP": "10.0.0.1",
        "DSTACK_GPUS_PER_NODE": "4",
        "DSTACK_GPUS_NUM": "12",
    }


class TestOutcome:
    names = ("train-1-0", "train-1-1")

    def test_it_goes_on_until_all_are_done(self) -> None:
        assert run_outcome({0: None, 1: None}, self.names, None) is None
        assert run_outcome({0: 0, 1: None}, self.names, "all-done") is None
        assert run_outcome({0: 0, 1: 0}, self.names, "all-done") == RunOutcome(0)

    def test_the_master_may_end_it(self) -> None:
        assert run_outcome({0: None, 1: 0}, self.names, "master-done") is None
        assert run_outcome({0: 0, 1: None}, self.names, "master-done") == RunOutcome(0)

    @pytest.mark.parametrize("criteria", [None, "all-done", "master-done"])
    def test_a_node_that_fails_ends_it(self, criteria: str | None) -> None:
        assert run_outcome({0: None, 1: 3}, self.names, criteria) == RunOutcome(
            3, "train-1-1 exited with code 3"
        )

    def test_a_signal_is_reported_as_shells_report_it(self) -> None:
        assert run_outcome({0: -9, 1: 0}, self.names, None) == RunOutcome(
            137, "train-1-0 was ended by signal 9"
        )

    @given(codes=st.lists(st.none() | st.integers(-64, 255), min_size=1, max_size=8))
    def test_it_succeeds_only_if_no_node_has_failed(self, codes: list[int | None]) -> None:
        names = [f"train-1-{rank}" for rank in range(len(codes))]

        outcome = run_outcome(dict(enumerate(codes)), names, None)

        failed = [code for code in codes if code not in (None, 0)]
        if failed:
            assert outcome is not None
            assert 0 < outcome.exit_code < 256
            assert outcome.reason
        elif None in codes:
            assert outcome is None
        else:
            assert outcome == RunOutcome(0)
