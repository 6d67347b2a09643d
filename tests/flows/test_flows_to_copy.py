"""The flows that people copy do what they say, with real models."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import httpx
import pytest
from prefect.exceptions import PrefectException

from flows.ab_test import ab_test
from flows.batch_score import batch_score
from flows.train_and_deploy import accuracy, train, train_and_deploy
from prefect_dstack import Endpoint, deploy_service, get_endpoint, get_service, list_revisions
from prefect_dstack.errors import ConflictError, RejectedError
from tests.flows.asking import Asking
from tests.flows.conftest import EXAMPLES
from tests.prefect_server import PrefectServer

pytest.importorskip("onnxruntime", reason="needs the dependency group examples")
pytest.importorskip("skl2onnx", reason="needs the dependency group examples")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("stop"),
    # Prefect leaves connections of its clients open when a run of an async flow ends.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

GOOD, BAD = {"trees": 20, "depth": 8}, {"trees": 1, "depth": 1}


@pytest.fixture
def moons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the service, and a `python3` that can serve its model."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    directory = tmp_path / "moons"
    shutil.copytree(EXAMPLES / "moons", directory, ignore=shutil.ignore_patterns("*.onnx"))
    return directory


def serving(moons: Path, name: str, model: dict[str, int]) -> Endpoint:
    train(moons / "model.onnx", **model)
    return deploy_service(moons / "moons.dstack.yml", name=name)


def test_a_trained_model_takes_over_only_if_it_is_no_worse(moons: Path, name: str) -> None:
    first = train_and_deploy(str(moons), name, **GOOD)
    model = (moons / "model.onnx").read_bytes()
    before = accuracy(first.url)
    assert before > 0.9

    with pytest.raises(RejectedError, match="its evaluation rejected it with a score of"):
        train_and_deploy(str(moons), name, **BAD)
    assert accuracy(first.url) == before
    assert (moons / "model.onnx").read_bytes() == model

    second = train_and_deploy(str(moons), name, trees=30, depth=8)
    assert second.revision > first.revision
    assert accuracy(second.url) >= before - 0.01
    revisions = list_revisions(name)
    assert [it.outcome for it in revisions] == ["superseded", "failed", "active"]
    assert revisions[-1].annotations == {"trees": 30, "depth": 8}
    assert revisions[-1].model_asset == f"file://{moons}/model.onnx"


def test_a_job_scores_its_rows_and_leaves_nothing_running(moons: Path, name: str) -> None:
    train(moons / "model.onnx", **GOOD)
    file = str(moons / "moons.dstack.yml")
    rows = [[0.0, 1.0], [1.0, -0.5]] * 55

    assert batch_score(rows, file, name, size=20) == [0, 1] * 55
    assert get_service(name).state == "stopped"

    with pytest.raises((httpx.HTTPStatusError, PrefectException)):
        batch_score([[0.0]], file, name)
    assert get_service(name).state == "stopped"


def test_a_job_does_not_stop_what_serves_already(moons: Path, name: str) -> None:
    endpoint = serving(moons, name, GOOD)

    with pytest.raises(ConflictError, match="give another name"):
        batch_score([[0.0, 1.0]], str(moons / "moons.dstack.yml"), name)
    assert accuracy(endpoint.url) > 0.9


@pytest.mark.slow
def test_the_better_of_two_revisions_serves_on(moons: Path, name: str, prefect_server: PrefectServer) -> None:
    endpoint = serving(moons, name, BAD)
    file = str(moons / "ab.dstack.yml")
    with Asking(endpoint.url) as asking:
        train(moons / "model.onnx", **GOOD)
        better = asyncio.run(ab_test(file, name, count=50))
        assert better.revision == 2

        train(moons / "model.onnx", **BAD)
        stayed = asyncio.run(ab_test(file, name, count=50))
        assert stayed.revision == 2
    assert asking.failures == []
    assert get_endpoint(name).revision == 2
    assert accuracy(endpoint.url) > 0.9
    service = get_service(name)
    assert (service.state, service.serving, service.problems) == ("serving", 1, [])
    assert [it.outcome for it in list_revisions(name)] == ["superseded", "active", "failed"]
