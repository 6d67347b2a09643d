"""A version that does not work harms nobody: the old one answers, and nothing of the new one stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_dstack import Endpoint
from prefect_dstack.errors import PrefectDstackError, ReplicaExitedError, ReplicaNotReadyError
from tests.command_line import CommandLine
from tests.flows.asking import Asking
from tests.flows.conftest import HELLO, hello
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TESTBED_APP = Path(__file__).parents[1] / "testbed" / "app.py"

Deploy = Callable[..., Endpoint]


def last_failure(server: PrefectServer, name: str) -> str:
    """What the Prefect UI shows of the last deployment."""
    runs = server.ask(
        "/flow_runs/filter",
        flow_runs={"name": {"any_": [f"deploy {name}"]}, "state": {"type": {"any_": ["FAILED"]}}},
        sort="START_TIME_DESC",
        limit=1,
    )
    return str(runs[0]["state"]["message"])


def amiss(name: str) -> list[str]:
    """What is not as it should be."""
    from prefect_dstack import reconcile_services

    return [line for line in reconcile_services(dry_run=True) if name in line]


BROKEN: dict[str, tuple[dict[str, Any], type[PrefectDstackError], list[str]]] = {
    "exits": (
        {"commands": ["echo out of luck", "exit 3"]},
        ReplicaExitedError,
        ["exited with code 3"],
    ),
    "never listens": (
        {"commands": ["exec sleep 1000"], "rollout": {"timeout": "2s"}},
        ReplicaNotReadyError,
        ["not ready within 2 s", "GET /health: connection refused"],
    ),
    "answers 500 to its probe": (
        {
            "commands": [f"exec python3 {TESTBED_APP}"],
            "env": {"BROKEN": "500"},
            "rollout": {"timeout": "2s"},
        },
        ReplicaNotReadyError,
        ["not ready within 2 s", "GET /health: 500 Internal Server Error"],
    ),
}


def test_a_broken_version_leaves_the_old_one_as_it_was(
    deploy: Deploy, home: Home, name: str, prefect_server: PrefectServer
) -> None:
    endpoint = deploy()
    before = sorted(home.state.glob("replicas/*/"))
    with Asking(endpoint.url) as asking:
        for number, (what, (keys, kind, words)) in enumerate(BROKEN.items(), 2):
            with pytest.raises(kind) as caught:
                deploy(**keys)
            first_line = str(caught.value).splitlines()[0]
            assert first_line.startswith(f"{name}@{number} failed: {name}-{number}-0: "), what
            assert first_line.endswith(f"; {name}@1 serves on"), what
            for word in words:
                assert word in first_line, what
            assert first_line in last_failure(prefect_server, name).splitlines()[0]
            assert sorted(home.state.glob("replicas/*/")) == before, what
            assert amiss(name) == [], what
    assert asking.failures == []
    assert set(asking.answers) == {"1"}


def test_the_command_line_says_why_in_its_first_line(
    deploy: Deploy, cli: CommandLine, name: str, tmp_path: Path
) -> None:
    deploy()
    file = tmp_path / "broken.dstack.yml"
    file.write_text(yaml.safe_dump(hello(name, commands=["echo no model; exit 7"])))
    outcome = cli("apply", "-f", file, "-y")
    errors = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert outcome.code == 2
    assert len(errors) == 1
    assert f"{name}@2 failed: {name}-2-0: it exited with code 7" in errors[0]
    assert errors[0].endswith(f"; {name}@1 serves on")
    assert outcome.err.splitlines()[-1] == "    no model"


def test_a_rollout_that_fails_half_way_takes_the_old_revision_back_to_full_strength(
    deploy: Deploy, name: str
) -> None:
    endpoint = deploy(replicas=3)
    with Asking(endpoint.url) as asking:
        with pytest.raises(ReplicaExitedError, match=f"{name}-2-2: it exited with code 1"):
            deploy(replicas=3, commands=['[ "$DSTACK_REPLICA_NUM" != 2 ] || exit 1', HELLO])
        assert amiss(name) == []
    assert asking.failures == []
    assert set(asking.answers) == {"1", "2"}, "it must have got half way"
    again = deploy(replicas=3)
    assert not again.changed
    assert again.replicas == [f"{name}-1-{number}" for number in range(3)]
