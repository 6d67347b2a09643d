"""Containers that do not start, or run out of memory: the reason comes first, the old version serves on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prefect_dstack import Endpoint
from prefect_dstack.errors import ImageError, PrefectDstackError, ReplicaExitedError
from tests.flows.asking import Asking
from tests.testbed.engine import LocalEngine
from tests.testbed.images import load_image

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.slow]

HOG = "exec python3 -c 'import time; held = bytearray(256 << 20); time.sleep(60)'"

BROKEN: dict[str, tuple[dict[str, Any], type[PrefectDstackError], list[str]]] = {
    "image does not exist": ({"image": "testbed/nothing:1"}, ImageError, ["testbed/nothing:1"]),
    "runs out of memory": (
        {"commands": [HOG], "resources": {"memory": "64MB"}},
        ReplicaExitedError,
        ["ran out of memory", "resources.memory"],
    ),
}


@pytest.fixture
def image(docker_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> str:
    """The image of the application, on the Docker Engine of this machine."""
    monkeypatch.setenv("DOCKER_HOST", docker_engine.url)
    return load_image(docker_engine, "app")


def test_a_broken_container_leaves_the_old_one_as_it_was(
    deploy: Callable[..., Endpoint], docker_engine: LocalEngine, image: str, name: str
) -> None:
    keys = {"image": image, "commands": ["exec python3 /app/app.py"]}
    endpoint = deploy(**keys)
    with Asking(endpoint.url, "hostname") as asking:
        for number, (what, (changes, kind, words)) in enumerate(BROKEN.items(), 2):
            with pytest.raises(kind) as caught:
                deploy(**{**keys, **changes})
            first_line = str(caught.value).splitlines()[0]
            assert first_line.startswith(f"{name}@{number} failed: "), what
            assert first_line.endswith(f"; {name}@1 serves on"), what
            for word in words:
                assert word in first_line, what
            with docker_engine.docker() as client:
                labelled = client.containers.list(
                    all=True, filters={"label": f"prefect-dstack.service={name}"}
                )
                assert [container.name for container in labelled] == [f"prefect-dstack-{name}-1-0"], what
    assert asking.failures == []
    assert set(asking.answers) == {f"{name}-1-0"}
