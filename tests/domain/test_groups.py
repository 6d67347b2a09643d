"""Which numbers the replicas of groups have, and what each of them runs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.configurations import Environment, ServiceConfiguration, load_configuration
from prefect_dstack.domain.execution import runtime_of
from prefect_dstack.domain.groups import group_configurations, group_name, group_names, replica_numbers
from prefect_dstack.domain.revision import settings_digest, workload_digest, written

WEB: dict[str, Any] = {"name": "web", "replicas": 1, "commands": ["web"], "resources": {"memory": "1GB"}}
WORK: dict[str, Any] = {"name": "work", "replicas": 2, "commands": ["work"], "python": "3.12"}


def service(**keys: Any) -> ServiceConfiguration:
    configuration = load_configuration({"type": "service", "port": 8000, **keys}, name="hello", environ={})
    assert isinstance(configuration, ServiceConfiguration)
    return configuration


def workload(configuration: ServiceConfiguration) -> str:
    return workload_digest(configuration, Environment(), None, "/work", "salt")


class TestNumbers:
    @given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    def test_each_number_is_of_one_group_and_each_group_has_what_it_is_to_have(
        self, counts: list[int]
    ) -> None:
        names = [f"group-{index}" for index in range(len(counts))]
        numbers = replica_numbers(counts)

        assert len(set(numbers)) == len(numbers) == sum(counts)
        assert list(numbers) == sorted(numbers)
        of_groups = [group_name(names, number) for number in numbers]
        assert [of_groups.count(name) for name in names] == counts

    @given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.data())
    def test_a_group_that_grows_leaves_all_numbers_as_they_were(
        self, counts: list[int], data: st.DataObject
    ) -> None:
        more = [count + data.draw(st.integers(0, 3)) for count in counts]

        assert set(replica_numbers(counts)) <= set(replica_numbers(more))

    @given(st.integers(0, 20))
    def test_a_service_without_groups_counts_from_0(self, count: int) -> None:
        assert replica_numbers([count]) == tuple(range(count))


class TestNames:
    @pytest.mark.parametrize("key", ["groups", "replicas"])
    def test_they_are_the_same_in_a_record_under_either_key(self, key: str) -> None:
        configuration = service(**{key: [WEB, {"replicas": 1, "commands": ["other"]}]})

        assert group_names(configuration) == group_names(written(configuration)) == ("web", "1")

    @pytest.mark.parametrize(
        "keys", [{}, {"replicas": 3}, {"replicas": "1..2", "scaling": {"metric": "rps", "target": 1}}]
    )
    def test_a_service_without_groups_is_one_without_a_name(self, keys: dict[str, Any]) -> None:
        configuration = service(commands=["run"], **keys)

        assert group_names(configuration) == group_names(written(configuration)) == ("",)


class TestWhatTheyRun:
    def test_a_service_without_groups_runs_what_it_says(self) -> None:
        configuration = service(commands=["run"])

        assert group_configurations(configuration) == (configuration,)

    def test_a_group_speaks_for_itself_and_the_service_for_what_it_does_not_say(self) -> None:
        web, work = group_configurations(
            service(groups=[WEB, WORK], resources={"memory": "8GB"}, env={"A": "1"})
        )

        assert (web.commands, work.commands) == (("web",), ("work",))
        assert (web.python, work.python) == (None, "3.12")
        assert web.resources.memory is not None
        assert work.resources.memory is not None
        assert (web.resources.memory.min, work.resources.memory.min) == (1, 8)
        assert web.env == work.env == {"A": "1"}
        assert not web.replica_groups
        assert work.replica_count == 2

    def test_the_service_runs_in_containers_if_a_group_names_an_image(self) -> None:
        configuration = service(groups=[{"replicas": 1, "image": "app"}])

        assert runtime_of(configuration) == runtime_of(written(configuration)) == "docker"
        assert runtime_of(service(groups=[WEB])) == "process"


class TestDigests:
    @pytest.mark.parametrize(
        "change",
        [{"commands": ["other"]}, {"python": "3.13"}, {"resources": {"memory": "9GB"}}, {"name": "other"}],
    )
    def test_what_a_group_runs_takes_new_replicas(self, change: dict[str, Any]) -> None:
        before, after = service(groups=[WEB, WORK]), service(groups=[WEB, {**WORK, **change}])

        assert workload(before) != workload(after)
        assert settings_digest(before, "salt") == settings_digest(after, "salt")

    @pytest.mark.parametrize(
        "groups",
        [
            {"groups": [WEB, {**WORK, "replicas": 5}]},
            {"replicas": [WEB, {**{k: v for k, v in WORK.items() if k != "replicas"}, "count": 5}]},
        ],
    )
    def test_how_many_it_has_and_the_key_of_groups_do_not(self, groups: dict[str, Any]) -> None:
        before, after = service(groups=[WEB, WORK]), service(**groups)

        assert workload(before) == workload(after)
        assert settings_digest(before, "salt") == settings_digest(after, "salt")
