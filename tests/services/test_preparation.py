"""What is found out about a deployment before anything is created."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefect_dstack.configurations import load_configuration
from prefect_dstack.domain.record import DesiredReplicas, ServiceRecord, now
from prefect_dstack.errors import UserError
from prefect_dstack.infrastructure.sources import Sources
from prefect_dstack.services.loading import load_service
from prefect_dstack.services.preparation import desired_replicas, prepare, scaled_groups

SERVICE: dict[str, Any] = {"type": "service", "name": "hello", "port": 8000, "image": "app"}
SOURCES = cast("Sources", SimpleNamespace(secret=lambda name: f"secret {name}"))


def test_what_comes_from_the_environment_of_the_deployer_is_kept_for_later() -> None:
    keys = {
        "env": {"A": None, "B": "x-${{ env.OTHER }}", "C": "plain"},
        "registry_auth": {"username": "$oauthtoken", "password": "${{ env.KEY }}"},
    }
    service = load_service({**SERVICE, **keys})

    work = prepare(service, SOURCES, {"A": "1", "OTHER": "2", "KEY": "3", "C": "no", "HOME": "no"})

    assert work.own_environment == {"A": "1", "OTHER": "2", "KEY": "3"}
    assert work.environment.reveal() == {"A": "1", "B": "x-2", "C": "plain"}
    assert work.registry is not None
    assert work.registry.password.get_secret_value() == "3"
    assert "'3'" not in repr(work)
    record = service.model_dump(mode="json", exclude_unset=True)
    again = prepare(load_service(load_configuration(record, environ={})), SOURCES, work.own_environment)
    assert again.environment == work.environment
    assert again.registry == work.registry


def record(**desired: Any) -> ServiceRecord:
    known = DesiredReplicas(set_by="configuration", set_at=now(), **desired) if desired else None
    return ServiceRecord(name="hello", salt="salt", desired=known)


class TestGroups:
    SERVICE = {  # noqa: RUF012
        **SERVICE,
        "groups": [{"name": "web", "replicas": 1}, {"name": "work", "replicas": 2, "commands": ["work"]}],
    }

    def test_each_has_what_it_runs(self) -> None:
        prepared = prepare(load_service(self.SERVICE), SOURCES, {})

        assert prepared.groups == ("web", "work")
        assert [(spec.image, spec.commands) for spec in prepared.specs] == [("app", ()), ("app", ("work",))]

    @pytest.mark.parametrize(
        "before",
        [
            {},
            {"replicas": 5},
            {"replicas": 5, "pinned": True},
            {"replicas": 4, "groups": {"web": 4}},
            {"replicas": 4, "groups": {"web": 2, "other": 2}, "pinned": True},
        ],
    )
    def test_they_have_the_numbers_of_the_file(self, before: dict[str, Any]) -> None:
        desired = desired_replicas(record(**before), load_service(self.SERVICE))

        assert (desired.replicas, desired.groups) == (3, {"web": 1, "work": 2})
        assert desired.set_by == "configuration"
        assert not desired.pinned
        assert desired.numbers(("web", "work")) == (0, 1, 3)
        assert desired.summary == "web 1, work 2"

    def test_numbers_that_somebody_has_pinned_stay(self) -> None:
        pinned = record(replicas=7, groups={"web": 3, "work": 4}, pinned=True)

        assert desired_replicas(pinned, load_service(self.SERVICE)) == pinned.desired

    def test_a_service_without_groups_does_not_take_over_their_numbers(self) -> None:
        desired = desired_replicas(
            record(replicas=3, groups={"web": 3}, pinned=True), load_service({**SERVICE, "replicas": 3})
        )

        assert (desired.groups, desired.pinned, desired.numbers(("",))) == ({}, False, (0, 1, 2))

    def test_one_of_them_is_scaled(self) -> None:
        before = record(replicas=3, groups={"web": 1, "work": 2})

        assert scaled_groups(before, ("web", "work"), 5, "work") == {"web": 1, "work": 5}
        assert scaled_groups(record(replicas=3), ("",), 5, None) == {}

    @pytest.mark.parametrize(
        ("names", "group", "message"),
        [
            (("web", "work"), None, "has groups of replicas; name one of web, work: --group web"),
            (("web", "work"), "wokr", "has no group 'wokr'; name one of web, work"),
            (("",), "web", "has no groups of replicas"),
        ],
    )
    def test_which_of_them_must_be_said(
        self, names: tuple[str, ...], group: str | None, message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            scaled_groups(record(replicas=3), names, 5, group)
