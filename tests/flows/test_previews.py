"""A revision that gets no requests can be asked through the gateway, by those with a token who name it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError

import pytest

from prefect_dstack import (
    Endpoint,
    Evaluation,
    Release,
    approve_service,
    create_token,
    reconcile_services,
    reject_service,
    revoke_token,
    rollback_service,
    scale_service,
)
from prefect_dstack.errors import ConflictError, RejectedError
from prefect_dstack.store.sources import resolve_infrastructure
from tests.command_line import CommandLine
from tests.flows.asking import Asking
from tests.flows.conftest import deploy, get, stop

__all__ = ["deploy", "stop"]

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Deploy = Callable[..., Endpoint]


def ask(url: str, revision: int | None = None, token: str | None = None) -> tuple[int, str, str | None]:
    """The status, the revision that has answered, and the one that the gateway names."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if revision is not None:
        headers["X-Dstack-Revision"] = str(revision)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            body: dict[str, Any] = json.load(answer)
            return answer.status, body["revision"], answer.headers["X-Dstack-Revision"]
    except HTTPError as error:
        return error.code, "", None


def test_what_waits_for_approval_answers_who_names_it_with_a_token(
    deploy: Deploy, name: str, cli: CommandLine
) -> None:
    url = deploy(env={"GREETING": "one"}).url
    token = create_token(name)
    value = token.value.get_secret_value()
    with Asking(url) as asking:
        deploy(env={"GREETING": "two"}, approval=True)

        assert ask(url, 2, value) == (200, "2", "2")
        assert ask(url, 2) == (401, "", None)
        assert ask(url, 2, f"{value}x") == (401, "", None)
        assert ask(url, 3, value) == ask(url, None, value) == (200, "1", None)
        assert json.loads(cli.ok("call", name, "/", "--revision", "2").out)["revision"] == "2"
        assert json.loads(cli.ok("call", name, "/", "--revision", "1").out)["revision"] == "1"
        assert f"{name}@3: cannot be called" in cli("call", name, "/", "--revision", "3").err
        scale_service(name, 2)
        assert reconcile_services() == []
        assert ask(url, 2, value) == (200, "2", "2"), "it stays while it waits"
        revoke_token(token.id)
        assert ask(url, 2, value)[0] == 401
        assert set(asking.answers) == {"1"}
        approve_service(name)
    assert asking.failures == []

    assert ask(url, 2) == (200, "2", None)
    assert ask(url, 1) == (200, "2", None)


def test_what_is_rejected_cannot_be_asked_any_more(deploy: Deploy, name: str) -> None:
    url = deploy(env={"GREETING": "one"}, auth=True).url
    token = create_token(name).value.get_secret_value()
    deploy(env={"GREETING": "two"}, auth=True, approval=True)
    assert ask(url, 2, token) == (200, "2", "2")

    reject_service(name)

    assert ask(url, 2, token) == (200, "1", None)
    with pytest.raises(ConflictError, match=rf"{name}@2: rejected by .*; apply its file"):
        rollback_service(name, to=2)
    state = resolve_infrastructure().gateway("local").state()
    assert state is not None
    assert state.route(name).preview is None


def test_what_is_evaluated_can_be_asked_meanwhile(deploy: Deploy, name: str) -> None:
    url = deploy(env={"GREETING": "one"}).url
    token = create_token(name).value.get_secret_value()
    seen = []

    def judge(release: Release) -> Evaluation:
        seen.append(ask(url, release.revision, token))
        return Evaluation(passed=release.revision == 3)

    with pytest.raises(RejectedError):
        deploy(env={"GREETING": "two"}, evaluate=judge)
    assert ask(url, 2, token) == (200, "1", None)
    deploy(env={"GREETING": "three"}, evaluate=judge)

    assert seen == [(200, "2", "2"), (200, "3", "3")]
    assert get(url)["revision"] == "3"


def test_a_preview_that_was_left_behind_ends_with_the_next_repair(deploy: Deploy, name: str) -> None:
    url = deploy(env={"GREETING": "one"}).url
    deploy(env={"GREETING": "two"}, approval=True)
    gateway = resolve_infrastructure().gateway("local")
    state = gateway.state()
    assert state is not None
    left = state.route(name).preview
    reject_service(name)
    gateway.preview(name, left)

    assert reconcile_services() == [f"end the preview of {name}@2 at gateway local"]

    assert reconcile_services() == []
    assert get(url)["revision"] == "1"
