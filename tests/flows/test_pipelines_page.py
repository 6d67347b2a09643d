"""What docs/how-to/pipelines.md shows runs as it stands there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.assets import materialize

from prefect_dstack import deploy_service, get_service, list_revisions
from tests.flows.conftest import forget, get
from tests.flows.test_documented import DOCS, blocks, program, snippet
from tests.home import Home
from tests.polling import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("home", "prefect_server")]

PAGE = DOCS / "how-to" / "pipelines.md"
SERVICES = ("shop", "shop-for-a-job", "shop-berlin", "shop-paris")


@pytest.fixture
def shop(tmp_path: Path, home: Home) -> Iterator[Path]:
    """A directory with the service of the page."""
    directory = tmp_path / "shop"
    directory.mkdir()
    (directory / "app.py").write_text(blocks(DOCS / "tutorial.md", "python")[0])
    (directory / "shop.dstack.yml").write_text(blocks(PAGE, "yaml")[0])
    yield directory
    forget(*SERVICES)


def run(directory: Path, part: str) -> str:
    """Run the snippet that has this in it as a program, and return what it printed."""
    (directory.parent / "mine.py").write_text(snippet(PAGE, part))
    done = subprocess.run(
        [sys.executable, "../mine.py"],
        cwd=directory,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pipeline_deploys_its_model_and_is_asked_about_it(shop: Path) -> None:
    url = run(shop, "@materialize").strip()

    assert get(url)
    (revision,) = list_revisions("shop")
    assert revision.model_asset == f"file://{shop}/shop.bin"
    lines = run(shop, "get_service(").splitlines()
    assert lines[:2] == [f"serving 1 {url}", "1 active {'accuracy': 0.91, 'commit': '4f2a1c9'}"]
    assert lines[2] == "serving"


def test_a_job_has_an_endpoint_of_its_own(shop: Path) -> None:
    assert run(shop, "ask.map(").strip() == "[200, 200]"
    assert get_service("shop-for-a-job").state == "stopped"


def test_two_services_are_deployed_at_once(shop: Path) -> None:
    printed = run(shop, "asyncio.gather(")

    assert all(str(get_service(f"shop-{town}").url) in printed for town in ("berlin", "paris"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_new_model_is_deployed_when_it_is_materialised(shop: Path) -> None:
    model = shop.parent / "models" / "shop.bin"
    model.parent.mkdir()
    text = snippet(PAGE, "DeploymentEventTrigger(").replace("/srv/models/shop.bin", str(model))

    @materialize(f"file://{model}")
    def train(weights: str) -> None:
        model.write_text(weights)

    @flow
    def training(weights: str) -> None:
        train(weights)

    training("one")
    deploy_service(shop / "shop.dstack.yml", model_asset=str(model))
    with program(shop, text, "deploy-service/on-new-model"):
        training("two")
        wait_until(lambda: get_service("shop").revision == 2, 120, "the new model serves", interval=1)
        wait_until(lambda: get_service("shop").state == "serving", 30, "nothing goes on any more", interval=1)
    first, second = list_revisions("shop")
    assert first.model_version != second.model_version
