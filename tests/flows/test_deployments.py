"""The deployments of `prefect.yaml`, on a real server and through a real worker, as the UI runs them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.states import Crashed

from prefect_dstack import Endpoint, approve_service, reconcile_services, reject_service
from prefect_dstack.store.records import load_record
from tests.flows.conftest import EXAMPLES, deploy, get, hello, stop
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

__all__ = ["deploy", "stop"]

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = EXAMPLES.parent
AUTOMATIONS = ROOT / "docs" / "how-to" / "automations.md"
PREFECT = Path(sys.executable).with_name("prefect")


def prefect(*arguments: str, directory: Path = ROOT) -> str:
    done = subprocess.run(
        [PREFECT, "--no-prompt", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def worker(home: Home) -> Iterator[None]:
    """A `process` worker of the pool that `prefect.yaml` names."""
    with (home.path / "worker.log").open("a") as log:
        process = subprocess.Popen(
            [PREFECT, "worker", "start", "--pool", "dstack", "--type", "process"],
            cwd=ROOT,
            env={**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            worker = psutil.Process(process.pid)
            for each in [*worker.children(recursive=True), worker]:
                # Replicas, gateways and their supervisors are in sessions of their own, and stay.
                with contextlib.suppress(psutil.NoSuchProcess):
                    if each.pid == process.pid or "prefect.engine" in " ".join(each.cmdline()):
                        each.kill()
            process.wait()


def deploy_all(
    project: dict[str, Any] | None = None, file: Path = ROOT / "prefect.yaml", directory: Path = ROOT
) -> None:
    """Deploy what `prefect.yaml` has, or a variant of it; flows are in the directory."""
    prefect("work-pool", "create", "dstack", "--type", "process", "--overwrite")
    if project is not None:
        file.write_text(yaml.safe_dump(project))
    prefect("deploy", "--all", "--prefect-file", str(file), directory=directory)


def run(deployment: str, **parameters: Any) -> FlowRun:
    """Run a deployment to its end, which must be a good one."""
    ended: Any = run_deployment(deployment, parameters=parameters, timeout=300, poll_interval=0.5)
    assert ended.state is not None
    assert ended.state.is_completed(), (deployment, ended.state)
    assert isinstance(ended, FlowRun)
    return ended


def state_of(flow_run: FlowRun) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(flow_run.id).state


def tags_of(flow_run: FlowRun) -> list[str]:
    with get_client(sync_client=True) as client:
        return list(client.read_flow_run(flow_run.id).tags)


def suspended(name: str, greeting: str) -> FlowRun:
    """Run a deployment whose revision needs approval, until its flow run is suspended."""
    begun: Any = run_deployment(
        "deploy-service/default",
        parameters={"configuration": hello(name, env={"GREETING": greeting}), "approval": True},
        timeout=0,
    )
    wait_until(lambda: state_of(begun).name == "Suspended", 120, "it is suspended", interval=0.5)
    assert isinstance(begun, FlowRun)
    return begun


def resume(flow_run: FlowRun, decision: dict[str, Any] | None) -> None:
    """Resume a flow run, with what the form of the Prefect UI asks for, or without."""
    with get_client(sync_client=True) as client:
        client.resume_flow_run(flow_run.id, run_input=decision)


def ended(flow_run: FlowRun) -> Any:
    wait_until(lambda: state_of(flow_run).is_final(), 120, "it has ended", interval=0.5)
    return state_of(flow_run)


def test_each_verb_runs_through_a_worker(
    stop: Callable[[], None], name: str, home: Home, prefect_server: PrefectServer
) -> None:
    deploy_all()
    with worker(home):
        first = run("deploy-service/default", configuration=str(EXAMPLES / "hello.dstack.yml"), name=name)
        assert first.state is not None
        url = first.state.result().url
        run("deploy-service/default", configuration=hello(name, env={"GREETING": "two"}))
        scaled = run("scale-service/default", name=name, replicas=2)
        assert len(load_record(name).endpoint.replicas) == 2  # type: ignore[union-attr]
        run("rollback-service/default", name=name)
        assert get(url)["revision"] == "1"
        run("stop-service/default", name=name)
    assert load_record(name).active is None
    assert f"service:{name}" in tags_of(first)
    assert f"service:{name}" in tags_of(scaled)


def test_a_suspended_run_is_approved_or_rejected(
    stop: Callable[[], None], name: str, home: Home, prefect_server: PrefectServer
) -> None:
    deploy_all()
    with worker(home):
        run("deploy-service/default", configuration=hello(name))
        by_form = suspended(name, "two")
    prefect_server.stop()
    prefect_server.start()
    assert load_record(name).active == 1
    assert list(json.loads(form_of(by_form, "schema"))["properties"]) == ["approve", "by", "reason"]
    assert f"{name}@2 waits for approval" in form_of(by_form, "description")
    with worker(home):
        resume(by_form, {"approve": True, "by": "Ada", "reason": "good"})
        assert ended(by_form).result().revision == 2
        decision = load_record(name).revision(2).decision
        assert decision is not None
        assert (decision.by, decision.reason) == ("Ada", "good")

        by_command = suspended(name, "three")
        assert approve_service(name).revision == 3
        endpoint = ended(by_command).result()
        assert isinstance(endpoint, Endpoint)
        assert endpoint.revision == 3

        without_form = suspended(name, "four")
        resume(without_form, None)
        assert ended(without_form).result().revision == 4

        refused = suspended(name, "five")
        resume(refused, {"approve": False, "by": "Ada", "reason": "too slow"})
        assert "rejected by Ada: too slow" in ended(refused).message

        by_command = suspended(name, "six")
        reject_service(name, by="Ada")
        assert (ended(by_command).name, load_record(name).active) == ("Rejected", 4)
    assert get(load_record(name).endpoint.url)["revision"] == "4"  # type: ignore[union-attr]


def form_of(flow_run: FlowRun, part: str) -> str:
    """What the form of a suspended flow run is made of: its `schema`, or its `description`."""
    key = state_of(flow_run).state_details.run_input_keyset[part]
    with get_client(sync_client=True) as client:
        return client.read_flow_run_input(flow_run.id, key)


def documented(language: str, part: str) -> str:
    """The one block of the page on automations that has this in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", AUTOMATIONS.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if part in block]
    return str(found)


def pulled_from(directory: Path, **project: Any) -> dict[str, Any]:
    """A project whose flows are in a directory."""
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(directory)}}
    return {"name": "test", "pull": [step], **project}


def shipped() -> dict[str, Any]:
    project: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    return project


def test_the_triggers_fire(
    stop: Callable[[], None], name: str, home: Home, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    deployments = shipped()["deployments"]
    triggers = [it["triggers"] for it in deployments if "triggers" in it]
    for part in ("prefect.flow-run.Crashed", "prefect-dstack.service.degraded"):
        assert yaml.safe_load(documented("yaml", part))["triggers"] in triggers, (
            "the page shows what is shipped"
        )
    for trigger in itertools.chain(*triggers):
        trigger["enabled"] = True
    deploy_all(pulled_from(ROOT, deployments=deployments), tmp_path / "enabled.yaml")
    with worker(home):
        run("deploy-service/default", configuration=hello(name, env={"GREETING": "one"}))
        run("deploy-service/default", configuration=hello(name, env={"GREETING": "two"}))
        lock = home.state / "replicas" / f"{name}-2-0" / "supervisor.lock"
        psutil.Process(int(lock.read_text())).kill()
        assert reconcile_services() != []
        wait_until(lambda: load_record(name).active == 1, 180, "the service is rolled back", interval=0.5)

        before = {it["id"] for it in runs_of_deployment("reconcile-services")}
        crashed: Any = run_deployment(
            "deploy-service/default", parameters={"configuration": hello(name)}, timeout=0, as_subflow=False
        )
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(crashed.id, Crashed(message="its worker was lost"), force=True)

        def repaired() -> bool:
            found = [it for it in runs_of_deployment("reconcile-services") if it["id"] not in before]
            return any(it["state_type"] == "COMPLETED" for it in found)

        wait_until(repaired, 180, "the crash has started a repair", interval=0.5)
    # Nothing of this test shall be started by what others do.
    deploy_all()
    delete_automations()


def test_people_are_told_that_a_revision_waits(
    deploy: Callable[..., Endpoint], name: str, home: Home, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    (tmp_path / "notify.py").write_text(documented("python", "def ask_people"))
    project = yaml.safe_load(documented("yaml", "approval-requested"))
    deploy_all(pulled_from(tmp_path, **project), tmp_path / "prefect.yaml", tmp_path)
    with worker(home):
        waiting = deploy(approval=True).waiting
        assert waiting is not None
        wait_until(
            lambda: [it["state_type"] for it in runs_of_deployment("ask-people")] == ["COMPLETED"],
            180,
            "people were told",
            interval=0.5,
        )
    (told,) = runs_of_deployment("ask-people")
    assert told["parameters"] == {
        "service": name,
        "question": waiting.question,
        "url": waiting.private_url,
    }
    delete_automations()


def test_the_flows_come_from_git(
    stop: Callable[[], None], name: str, home: Home, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "flows", repository / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(EXAMPLES, repository / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "Add the flows"]):
        author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        subprocess.run(["git", *author, *command], cwd=repository, check=True)
    pull = documented("yaml", "git_clone").replace(
        "https://github.com/acme/deployments.git", repository.as_uri()
    )
    deploy_all({**shipped(), **yaml.safe_load(pull)}, repository / "prefect.yaml", repository)
    with worker(home):
        run("deploy-service/default", name=name)
        run("scale-service/default", name=name, replicas=2)
    record = load_record(name)
    assert record.endpoint is not None
    assert len(record.endpoint.replicas) == 2
    assert not Path(record.revision(1).directory).is_relative_to(ROOT)
    assert get(record.endpoint.url)["revision"] == "1"


def delete_automations() -> None:
    with get_client(sync_client=True) as client:
        for automation in client.request("POST", "/automations/filter", json={}).json():
            client.request("DELETE", "/automations/{id}", path_params={"id": automation["id"]})


def runs_of_deployment(flow: str) -> list[dict[str, Any]]:
    with get_client(sync_client=True) as client:
        found: list[dict[str, Any]] = client.request(
            "POST",
            "/flow_runs/filter",
            json={"flows": {"name": {"any_": [flow]}}, "deployments": {"name": {"any_": ["default"]}}},
        ).json()
    return found
