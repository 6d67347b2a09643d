"""A service is a Prefect asset that depends on the asset of its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.assets import materialize
from prefect.runtime import flow_run

from prefect_dstack import Endpoint, deploy_service, list_revisions, restart_service, rollback_service
from prefect_dstack.errors import UserError
from tests.command_line import CommandLine
from tests.flows.conftest import hello
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stop")]


def materializations(server: PrefectServer, key: str) -> list[dict[str, Any]]:
    """The events of an asset, the oldest first."""
    wanted = {"resource": {"id": [key]}, "event": {"name": ["prefect.asset.materialization.succeeded"]}}
    found: list[dict[str, Any]] = server.ask("/events/filter", filter={**wanted, "order": "ASC"})["events"]
    return found


def related(event: dict[str, Any], role: str) -> list[str]:
    return [it["prefect.resource.id"] for it in event["related"] if it["prefect.resource.role"] == role]


def test_a_revision_is_an_asset_made_of_its_model(
    prefect_server: PrefectServer, name: str, tmp_path: Path, cli: CommandLine
) -> None:
    model = tmp_path / "shop.onnx"
    key, service = f"file://{model}", f"dstack://services/{name}"

    runs: list[str | None] = []

    @materialize(key)
    def train(weights: str) -> None:
        model.write_text(weights)

    @flow
    def pipeline(weights: str) -> Endpoint:
        train(weights)
        runs.append(flow_run.id)
        return deploy_service(
            hello(name), model_asset=str(model), annotations={"commit": weights, "accuracy": 0.91}
        )

    @flow
    def again() -> list[Endpoint]:
        return [deploy_service(hello(name), model_asset=str(model)), rollback_service(name)]

    assert pipeline("one").revision == 1
    assert pipeline("two").revision == 2
    assert [it.changed for it in again()] == [False, True]

    found = wait_until(
        lambda: len(events := materializations(prefect_server, service)) == 3 and events, 30, "three events"
    )
    assert [event["payload"]["revision"] for event in found] == [1, 2, 1]
    assert [event["payload"]["annotations"]["commit"] for event in found] == ["one", "two", "one"]
    for event in found:
        assert related(event, "asset") == [key]
        assert related(event, "asset-materialized-by") == ["prefect-dstack"]
        assert event["payload"]["url"].startswith("http://")
    # From the service one comes to its model, and from that to the flow runs that have trained it.
    trained = materializations(prefect_server, key)
    assert [related(event, "flow-run") for event in trained] == [[f"prefect.flow-run.{run}"] for run in runs]

    revisions = list_revisions(name)
    assert [it.model_asset for it in revisions] == [key, key]
    assert revisions[0].model_version != revisions[1].model_version
    assert revisions[1].annotations == {"commit": "two", "accuracy": 0.91}
    assert "~model_asset: its content changed" in revisions[1].changes
    assert "    accuracy: 0.91" in cli.ok("history", name).out


def test_a_new_model_is_taken_up_by_a_restart(
    prefect_server: PrefectServer, name: str, tmp_path: Path
) -> None:
    (tmp_path / "model").write_text("one")
    deploy_service(hello(name), model_asset="model", directory=tmp_path)
    (tmp_path / "model").write_text("two")

    restart_service(name)

    first, second = list_revisions(name)
    assert first.model_version != second.model_version
    assert not deploy_service(hello(name), model_asset="model", directory=tmp_path).changed


def test_annotations_alone_are_kept_and_make_nothing_new(
    prefect_server: PrefectServer, deploy: Callable[..., Endpoint], name: str
) -> None:
    first = deploy_service(hello(name), annotations={"note": "first"})

    assert not deploy_service(hello(name), annotations={"note": "second"}).changed
    assert [it.annotations for it in list_revisions(name)] == [{"note": "first"}]
    assert first.revision == 1
    (event,) = wait_until(
        lambda: materializations(prefect_server, f"dstack://services/{name}"), 30, "an event"
    )
    assert related(event, "asset") == []


def test_annotations_that_cannot_be_kept_are_refused_first(name: str) -> None:
    for value in (object(), float("nan")):
        with pytest.raises(UserError, match="annotations: must be texts, numbers and the like"):
            deploy_service(hello(name), annotations={"accuracy": value})
