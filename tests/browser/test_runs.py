"""The UI of Prefect is enough to deploy and to see what happened; the docs show pictures of it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import playwright.sync_api
import pytest
import yaml
from PIL import Image
from playwright.sync_api import Locator, expect

from tests.browser.prefect_ui import PrefectUI
from tests.command_line import CommandLine
from tests.flows.conftest import get, hello
from tests.flows.test_deployments import prefect, worker
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(2400)]

# Prefect draws a task run that has completed in it.
GREEN = (34, 160, 76)


@pytest.fixture(scope="module")
def shipped(prefect_server: PrefectServer) -> str:
    """The deployment of `deploy-service` that `prefect.yaml` ships."""
    prefect("work-pool", "create", "dstack", "--type", "process", "--overwrite")
    prefect("deploy", "--name", "deploy-service/default")
    (found,) = prefect_server.ask("/deployments/filter", flows={"name": {"any_": ["deploy-service"]}})
    return str(found["id"])


@pytest.fixture
def deployment(shipped: str, prefect_server: PrefectServer, home: Home) -> Iterator[str]:
    """The same, with a worker that waits for its runs."""

    def polled() -> bool:
        workers = prefect_server.ask("/work_pools/dstack/workers/filter")
        return any(it["status"] == "ONLINE" and it["name"] not in before for it in workers)

    before = {it["name"] for it in prefect_server.ask("/work_pools/dstack/workers/filter")}
    with worker(home):
        wait_until(polled, 300, "the worker polls", interval=1)
        yield shipped


def fill(ui: PrefectUI, deployment: str, file: str | Path) -> None:
    """Fill in the form of the deployment."""
    ui.open(f"/deployments/deployment/{deployment}/run")
    ui.page.get_by_role("tabpanel", name="str").get_by_role("textbox").first.fill(str(file))


def submit(ui: PrefectUI, server: PrefectServer, deployment: str) -> str:
    """Submit the form, and return the id of the flow run."""
    before = {run["id"] for run in runs(server, deployment)}
    ui.page.get_by_role("button", name="Submit").click()
    ui.page.wait_for_url("**?tab=Runs")
    (new,) = [run for run in runs(server, deployment) if run["id"] not in before]
    return str(new["id"])


def runs(server: PrefectServer, deployment: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.ask(
        "/flow_runs/filter", flow_runs={"deployment_id": {"any_": [deployment]}}
    )
    return found


def until(server: PrefectServer, run: str, *states: str) -> dict[str, Any]:
    """Wait until a flow run is in one of some states."""

    def reached() -> dict[str, Any] | None:
        (found,) = server.ask("/flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        return found if found["state"]["name"] in states else None

    return wait_until(reached, 600, f"the flow run is {states}", interval=1)


def share_of(colour: tuple[int, int, int], part: Locator) -> float:
    """How much of a part of the page has a colour, or nearly."""
    with Image.open(io.BytesIO(part.screenshot())) as picture:
        data = picture.convert("RGB").tobytes()
    pixels = list(zip(data[::3], data[1::3], data[2::3], strict=True))
    near = [has for has in pixels if max(abs(a - b) for a, b in zip(has, colour, strict=True)) < 40]
    return len(near) / len(pixels)


def test_the_form_deploys(
    ui: PrefectUI, deployment: str, cli: CommandLine, home: Home, prefect_server: PrefectServer
) -> None:
    fill(ui, deployment, "examples/hello.dstack.yml")
    ui.page.get_by_role("heading", name="Parameters").click()
    ui.picture("run-form", height=760)
    run = submit(ui, prefect_server, deployment)
    until(prefect_server, run, "Completed")
    assert get(f"http://127.0.0.1:{home.port}")["revision"] == "1"

    ui.open(f"/runs/flow-run/{run}")
    expect(ui.page.get_by_text("service:hello")).to_be_visible()
    graph = ui.page.locator("canvas").first
    wait_until(lambda: share_of(GREEN, graph) > 0.002, 120, "the graph shows what has completed", interval=1)
    ui.picture("graph", height=620)
    ui.page.get_by_role("tab", name="Task Runs").click()
    for task in ("launch-replica hello-1-0", "wait-until-ready hello-1-0", "register-route hello"):
        expect(ui.page.get_by_text(task)).to_be_visible()

    ui.open("/artifacts/key/hello-service")
    ui.page.locator("a[href*='/artifacts/artifact/']").first.click()
    expect(ui.page.get_by_role("heading", name="Call it")).to_be_visible()
    expect(ui.page.get_by_role("cell", name="hello-1-0")).to_be_visible()
    ui.picture("service", height=1000)
    cli.ok("stop", "hello", "-y", timeout=300)
    cli.ok("delete", "hello", "-y", timeout=300)


@pytest.fixture
def served(cli: CommandLine, tmp_path: Path) -> Iterator[Path]:
    """The file of a service that serves, and is another revision when it is deployed again."""
    file = tmp_path / "shop.dstack.yml"
    file.write_text(yaml.safe_dump(hello("shop", env={"GREETING": "one"})))
    cli.ok("apply", file, "-y", timeout=300)
    file.write_text(yaml.safe_dump(hello("shop", env={"GREETING": "two"})))
    yield file
    cli.ok("stop", "shop", "-y", timeout=300)
    cli.ok("delete", "shop", "-y", timeout=300)


def begin(server: PrefectServer, deployment: str, **parameters: Any) -> str:
    """Start a run of the deployment, and return its id."""

    def begun() -> str | None:
        # A server on SQLite refuses what it has no time for.
        with contextlib.suppress(httpx.HTTPStatusError):
            run = server.ask(f"/deployments/{deployment}/create_flow_run", parameters=parameters)
            return str(run["id"])
        return None

    return wait_until(begun, 60, "the server takes a run of the deployment", interval=1)


def test_a_person_approves_in_the_form(
    ui: PrefectUI, deployment: str, served: Path, cli: CommandLine, home: Home, prefect_server: PrefectServer
) -> None:
    run = begin(prefect_server, deployment, configuration=str(served), approval=True)
    until(prefect_server, run, "Suspended")
    assert get(f"http://127.0.0.1:{home.port}")["revision"] == "1"

    ui.open(f"/runs/flow-run/{run}")
    form = ui.page.get_by_role("dialog")
    resume = ui.page.get_by_role("menuitem", name="Resume")

    def is_open() -> bool:
        # The page is drawn anew now and then, and its menu closes with that.
        if not resume.is_visible():
            ui.page.get_by_role("button", name="Open menu").last.click()
        with contextlib.suppress(playwright.sync_api.Error):
            resume.click(timeout=2000)
        return form.is_visible()

    wait_until(is_open, 120, "the form is there", interval=0.5)
    expect(form.get_by_text("shop@2 waits for approval")).to_be_visible()
    expect(form.get_by_text("+  GREETING: two")).to_be_visible()
    form.get_by_role("textbox").first.fill("Ada")
    ui.picture("approval", of=form, height=1000)
    form.get_by_role("button", name="Resume").click()
    expect(form).to_be_hidden()

    until(prefect_server, run, "Completed")
    assert get(f"http://127.0.0.1:{home.port}")["revision"] == "2"
    (revision,) = [it for it in json.loads(cli.ok("history", "shop", "--json").out) if it["number"] == 2]
    assert revision["decision"]["by"] == "Ada"


def test_the_page_of_a_failed_run_says_why(
    ui: PrefectUI, deployment: str, served: Path, home: Home, prefect_server: PrefectServer
) -> None:
    served.write_text(yaml.safe_dump(hello("shop", commands=["echo the model is missing", "exit 3"])))
    run = begin(prefect_server, deployment, configuration=str(served))
    until(prefect_server, run, "Failed")

    ui.open(f"/runs/flow-run/{run}")
    ui.page.get_by_role("tab", name="Artifacts").click()
    expect(ui.page.get_by_text("shop@2 failed; shop@1 serves on")).to_be_visible()
    ui.picture("failure", height=520)
    ui.page.get_by_role("link", name="shop-2-log").first.click()
    expect(ui.page.get_by_text("the model is missing").first).to_be_visible()
    ui.open("/artifacts/key/shop-service")
    ui.page.locator("a[href*='/artifacts/artifact/']").first.click()
    expect(ui.page.get_by_text("shop-2-0: it exited with code 3 before it was ready").first).to_be_visible()
    expect(ui.page.get_by_text("shop@1 serves").first).to_be_visible()
    assert get(f"http://127.0.0.1:{home.port}")["revision"] == "1"
