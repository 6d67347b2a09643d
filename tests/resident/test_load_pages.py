"""What services have borne is shown on their pages, while a controller watches."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from prefect_dstack import Endpoint
from prefect_dstack.resident import controller as module
from tests.flows.asking import Asking
from tests.flows.conftest import deploy, stop
from tests.flows.test_publication import page
from tests.polling import wait_until
from tests.prefect_server import PrefectServer
from tests.resident.test_controller import controller

__all__ = ["controller", "deploy", "stop"]

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOAD", 1.0)


def test_the_page_shows_the_load_and_has_no_more_versions(
    deploy: Callable[..., Endpoint], name: str, prefect_server: PrefectServer, controller: None
) -> None:
    endpoint = deploy(replicas=2)
    with Asking(endpoint.url):
        shown = wait_until(
            lambda: (
                page(prefect_server, name) if "The last day" in page(prefect_server, name)["data"] else None
            ),
            60,
            "the page shows the load",
        )
    assert shown["data"].startswith(f"# {name}\n")
    assert "](data:image/svg+xml;base64," in shown["data"]
    assert " requests/s (at " in shown["data"]
    assert re.search(r"\d replicas?$", shown["data"])
    versions = prefect_server.ask("/artifacts/filter", artifacts={"key": {"any_": [f"{name}-service"]}})
    assert [version["id"] for version in versions] == [shown["latest_id"]]
