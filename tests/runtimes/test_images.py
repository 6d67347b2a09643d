"""Images are pulled when they are missing, and whoever waits is told how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import ImageNotFound

from prefect_dstack.errors import ImageError
from prefect_dstack.runtimes import images
from prefect_dstack.runtimes.images import ensure_image

LAYERS: list[dict[str, Any]] = [
    {"id": "a", "status": "Downloading", "progressDetail": {"current": 1_000_000, "total": 4_000_000}},
    {"id": "b", "status": "Downloading", "progressDetail": {"current": 500_000, "total": 6_000_000}},
    {"id": "a", "status": "Download complete"},
    {"id": "b", "status": "Pull complete", "progressDetail": {}},
]


class Engine:
    """Answers as a Docker Engine does that has some images."""

    def __init__(self, has: list[str], events: list[dict[str, Any]]) -> None:
        self.has, self.events = has, events
        self.pulled: list[tuple[str, str]] = []
        self.images = self.api = self

    def get(self, image: str) -> SimpleNamespace:
        if image not in self.has:
            raise ImageNotFound(image)
        from_registry = image.startswith("registry.")
        return SimpleNamespace(attrs={"RepoDigests": [f"{image}@sha256:abc"] if from_registry else []})

    def pull(self, repository: str, *, tag: str, **_: Any) -> Iterator[dict[str, Any]]:
        self.pulled.append((repository, tag))
        return iter(self.events)


def ensure(engine: Engine, image: str, *, pull: bool = False) -> list[str]:
    told: list[str] = []
    ensure_image(engine, image, None, "gpu-1", told.append, pull=pull)  # type: ignore[arg-type]
    return told


def test_progress_is_told_over_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "REPORT_INTERVAL", 0.0)
    assert ensure(Engine([], LAYERS), "registry.example.com/model:2") == [
        "pulling registry.example.com/model:2 on gpu-1",
        "pulling registry.example.com/model:2 on gpu-1: 1 of 4 MB",
        "pulling registry.example.com/model:2 on gpu-1: 2 of 10 MB",
        "pulling registry.example.com/model:2 on gpu-1: 4 of 10 MB",
        "pulling registry.example.com/model:2 on gpu-1: 10 of 10 MB",
    ]


def test_an_image_that_was_built_here_is_not_replaced_by_one_of_a_registry() -> None:
    built, from_registry = Engine(["model:2"], []), Engine(["registry.example.com/model:2"], [])
    ensure(built, "model:2", pull=True)
    ensure(from_registry, "registry.example.com/model:2", pull=True)
    assert built.pulled == []
    assert from_registry.pulled == [("registry.example.com/model", "2")]


def test_an_image_that_is_there_is_pulled_only_if_its_tag_may_have_moved() -> None:
    pinned, moving = Engine(["model:2"], []), Engine(["model"], [])
    ensure(pinned, "model:2")
    ensure(moving, "model")
    assert pinned.pulled == []
    assert moving.pulled == [("model", "latest")]


def test_without_the_registry_an_image_that_is_there_will_do() -> None:
    failing = [{"error": "no route to the registry"}]
    assert ensure(Engine(["model"], failing), "model")[-1] == (
        "model cannot be pulled (no route to the registry), using the one that gpu-1 has"
    )
    with pytest.raises(ImageError, match=r"model: cannot be pulled on gpu-1, check its name.*no route"):
        ensure(Engine([], failing), "model")
