"""What docs/how-to/evaluate.md shows of `rollout.evaluation` runs as it stands there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dstack import deploy_service, get_endpoint
from prefect_dstack.errors import RejectedError
from tests.flows.conftest import forget, get
from tests.flows.test_documented import DOCS, blocks, program, snippet
from tests.home import Home

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("home", "prefect_server")]

PAGE = DOCS / "how-to" / "evaluate.md"


@pytest.fixture
def shop(tmp_path: Path, home: Home) -> Iterator[Path]:
    """A directory with the service of the page; its answer is its accuracy."""
    directory = tmp_path / "shop"
    directory.mkdir()
    app = blocks(DOCS / "tutorial.md", "python")[0]
    (directory / "app.py").write_text(app.replace('"answer"', '"accuracy"'))
    yield directory
    forget("shop")


@pytest.mark.timeout(200)
def test_the_deployment_of_the_page_judges(shop: Path) -> None:
    (written,) = blocks(PAGE, "yaml")
    file = shop / "shop.dstack.yml"
    with program(shop.parent, snippet(PAGE, "no_worse.serve("), "no-worse/default"):
        file.write_text(written.replace('"42"', '"0.93"'))
        deploy_service(file)
        file.write_text(written.replace('"42"', '"0.85"'))
        with pytest.raises(RejectedError, match=r"a score of 0\.85: accuracy 0\.85, at least 0\.90"):
            deploy_service(file)
    assert get(get_endpoint("shop").url)["accuracy"] == "0.93"
