"""The flow to copy that asks a person between blue and green, on a real server and through a real worker."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from prefect_dstack.store.records import load_record
from tests.flows.asking import Asking
from tests.flows.conftest import EXAMPLES, get, stop
from tests.flows.test_deployments import deploy_all, ended, form_of, resume, state_of, worker
from tests.flows.test_evaluation import running
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

__all__ = ["stop"]

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def begun(directory: Path, name: str, greeting: str) -> FlowRun:
    """Run the flow until a person is asked."""
    file = directory / "blue-green.dstack.yml"
    file.write_text(f"{(EXAMPLES / file.name).read_text()}\nenv: {{GREETING: {greeting}}}\n")
    parameters = {"configuration": str(file), "name": name}
    found: Any = run_deployment("blue-green-with-approval/default", parameters=parameters, timeout=0)
    wait_until(lambda: state_of(found).name == "Suspended" or state_of(found).is_final(), 240, interval=0.5)
    assert state_of(found).name == "Suspended", state_of(found)
    assert isinstance(found, FlowRun)
    return found


def test_a_person_switches_from_blue_to_green_or_stays(
    stop: Callable[[], None], name: str, home: Home, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    directory = tmp_path / "examples"
    shutil.copytree(EXAMPLES / "hello", directory / "hello")
    deploy_all()
    with worker(home):
        first = begun(directory, name, "one")
        resume(first, {"switch": True})
        endpoint = ended(first).result()
        assert get(endpoint.url)["greeting"] == "one"

        with Asking(endpoint.url) as asking:
            green = begun(directory, name, "two")
            waiting = load_record(name).approval
            assert waiting is not None
            assert waiting.private_url in form_of(green, "description")
            assert get(waiting.private_url)["greeting"] == "two"
            assert running(name) == [1, 1, 2, 2], "all of it stands beside the old one"
            resume(green, {"switch": True, "by": "Ada", "reason": "good"})
            assert ended(green).result().revision == 2
            assert running(name) == [2, 2]
            decision = load_record(name).revision(2).decision
            assert decision is not None
            assert (decision.by, decision.reason) == ("Ada", "good")
            assert set(asking.answers) == {"1", "2"}

            asking.answers.clear()
            red = begun(directory, name, "three")
            resume(red, {"switch": False, "by": "Ada", "reason": "too slow"})
            assert ended(red).result().revision == 2
            assert load_record(name).revision(3).reason == "rejected by Ada: too slow"
            assert running(name) == [2, 2]
            assert set(asking.answers) == {"2"}, "no client saw it"
        assert asking.failures == []
