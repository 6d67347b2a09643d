"""A scheduled redeployment replaces what has changed, and leaves alone what has not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from flows.scheduled_redeploy import scheduled_redeploy
from prefect_dstack import Endpoint
from prefect_dstack.errors import NotFoundError, UserError
from prefect_dstack.store.records import load_record
from tests.flows.conftest import EXAMPLES, get, hello
from tests.home import Home
from tests.testbed.engine import LocalEngine
from tests.testbed.images import load_image
from tests.testbed.registry import running_registry

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stop")]

Redeploy = Callable[..., Endpoint]


@pytest.fixture
def serving(name: str, tmp_path: Path) -> Path:
    """A directory with the file of a service, an application and a model beside it."""
    directory = tmp_path / "service"
    directory.mkdir()
    (directory / "app.py").write_text((EXAMPLES / "hello" / "app.py").read_text())
    (tmp_path / "model.onnx").write_text("weights of Monday")
    write(directory, hello(name, commands=["exec python3 app.py"]))
    return directory


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """The last line that says what was compared."""
    caplog.set_level(logging.INFO)

    def seen() -> str:
        lines = [it.getMessage() for it in caplog.records if "configuration " in it.getMessage()]
        return lines[-1].partition(": ")[2]

    return seen


def write(directory: Path, configuration: dict[str, Any]) -> None:
    (directory / "serve.dstack.yml").write_text(yaml.safe_dump(configuration))


def pids(home: Home) -> set[int]:
    """The processes of replicas."""
    return {it.pid for it in home.processes() if it.cmdline()[1:] == ["app.py"]}


def test_replicas_stay_until_something_changes(
    serving: Path, name: str, home: Home, seen: Callable[[], str]
) -> None:
    file, model = serving / "serve.dstack.yml", serving.parent / "model.onnx"

    def redeploy(**options: Any) -> Endpoint:
        return scheduled_redeploy(str(file), model_asset="../model.onnx", **options)

    assert redeploy().revision == 1
    before = pids(home)
    assert len(before) == 1
    for _ in range(2):
        assert not redeploy().changed
        assert pids(home) == before
        assert seen().startswith("configuration unchanged, files unchanged (")
        assert ", model unchanged (" in seen()

    model.write_text("weights of Tuesday")
    endpoint = redeploy()
    assert (endpoint.revision, endpoint.changed) == (2, True)
    assert ", model changed (" in seen()
    assert not pids(home) & before
    assert get(endpoint.url)["revision"] == "2"
    assert not redeploy().changed

    (serving / "app.py").write_text((serving / "app.py").read_text() + "\n# another\n")
    assert redeploy().revision == 3
    assert seen().startswith("configuration unchanged, files changed (")

    write(serving, hello(name, commands=["exec python3 app.py"], env={"GREETING": "two"}))
    assert redeploy().revision == 4
    assert seen().startswith("configuration changed, files unchanged (")

    assert redeploy(force=True).revision == 5


def test_a_model_in_a_directory_outside_is_compared_file_by_file(serving: Path, name: str) -> None:
    model = serving.parent / "model"
    (model / "shards").mkdir(parents=True)
    (model / "shards" / "1").write_text("one")
    write(serving, {**hello(name, commands=["exec python3 app.py"]), "model_asset": f"file://{model}"})

    assert scheduled_redeploy(str(serving / "serve.dstack.yml")).revision == 1
    assert not scheduled_redeploy(str(serving / "serve.dstack.yml")).changed
    (model / "shards" / "2").write_text("two")
    assert scheduled_redeploy(str(serving / "serve.dstack.yml")).revision == 2


def test_a_model_that_is_not_there_changes_nothing(serving: Path, name: str, home: Home) -> None:
    scheduled_redeploy(str(serving / "serve.dstack.yml"))
    before = pids(home)

    with pytest.raises(NotFoundError, match=r"gone\.onnx: there is no such model; correct model_asset"):
        scheduled_redeploy(str(serving / "serve.dstack.yml"), model_asset="gone.onnx")
    with pytest.raises(UserError, match="model_asset: must be a URI such as"):
        scheduled_redeploy(str(serving / "serve.dstack.yml"), model_asset="s3://a bucket/model")
    assert pids(home) == before
    assert load_record(name).deploying is None


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """S3 with an empty bucket `models`, where boto3 finds it."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    yield client
    client.close()
    server.stop()


def test_a_model_in_s3_is_compared_by_its_etag(
    serving: Path, name: str, home: Home, s3: Any, seen: Callable[[], str]
) -> None:
    file = str(serving / "serve.dstack.yml")
    for asset, key in (("s3://models/shop.onnx", "shop.onnx"), ("s3://models/large/", "large/1")):
        with pytest.raises(NotFoundError, match="correct model_asset"):
            scheduled_redeploy(file, model_asset=asset)
        s3.put_object(Bucket="models", Key=key, Body=b"Monday")
        first = scheduled_redeploy(file, model_asset=asset)
        before = pids(home)
        assert not scheduled_redeploy(file, model_asset=asset).changed
        assert pids(home) == before
        s3.put_object(Bucket="models", Key=key, Body=b"Tuesday")
        assert scheduled_redeploy(file, model_asset=asset).revision == first.revision + 1
        assert "model changed (" in seen()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry of container images on this machine."""
    with running_registry(tmp_path / "registry") as address:
        yield address


@pytest.mark.docker
@pytest.mark.slow
def test_a_tag_that_stands_for_another_image_takes_new_replicas(
    docker_engine: LocalEngine,
    registry: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    tmp_path: Path,
    seen: Callable[[], str],
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_engine.url)
    local, pushed = f"testbed/{name}:stable", f"{registry}/{name}:stable"
    with docker_engine.docker() as engine:
        first = engine.images.get(load_image(docker_engine, "app"))
        second = derived(engine, first)
        for tag in (local, pushed):
            try:
                first.tag(tag)
                put(engine, tag, registry)
                file = tmp_path / "serve.dstack.yml"
                file.write_text(yaml.safe_dump(hello(name, image=tag, commands=["exec python3 /app/app.py"])))
                begun = scheduled_redeploy(str(file))
                assert not scheduled_redeploy(str(file)).changed
                assert ", image unchanged (" in seen()
                second.tag(tag)
                put(engine, tag, registry)
                if tag == pushed:
                    # Somebody else has pushed it: this engine's own tag still stands for the first.
                    first.tag(tag)
                again = scheduled_redeploy(str(file))
                assert again.revision == begun.revision + 1
                assert ", image changed (" in seen()
                container = engine.containers.get(f"prefect-dstack-{name}-{again.revision}-0")
                assert container.image is not None
                assert container.image.id == second.id
                assert not scheduled_redeploy(str(file)).changed
            finally:
                engine.images.remove(tag, force=True)


def derived(engine: Any, image: Any) -> Any:
    """Another image, with the content of the first."""
    container = engine.containers.create(image.id, "true")
    try:
        return container.commit(changes="LABEL second=yes")
    finally:
        container.remove()


def put(engine: Any, tag: str, registry: str) -> None:
    """Push a tag if it is one of the registry."""
    if tag.startswith(registry):
        for line in engine.api.push(tag, stream=True, decode=True):
            assert "error" not in line, line
