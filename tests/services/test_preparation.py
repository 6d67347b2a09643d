"""What is found out about a deployment before anything is created."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from prefect_dstack.configurations import load_configuration
from prefect_dstack.infrastructure.sources import Sources
from prefect_dstack.services.preparation import load_service, prepare

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
