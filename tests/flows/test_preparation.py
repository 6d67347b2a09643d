"""What is found out about a deployment before anything is created."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from prefect_dstack.configurations import load_configuration
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.flows.preparation import load_service, workload
from tests.prefect_server import PrefectServer

SERVICE: dict[str, Any] = {"type": "service", "name": "hello", "port": 8000, "image": "app"}


class TestParametersOfADeployment:
    @pytest.fixture(autouse=True)
    def flow_run(self) -> Iterator[None]:
        run = FlowRun.model_construct(deployment_id=uuid4())
        with FlowRunContext.model_construct(flow_run=run):
            yield

    def test_that_prefect_has_taken_a_reference_out_of_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"env\.DB: has a '\$' alone, as Prefect leaves it"):
            load_service({**SERVICE, "env": {"DB": "http://me:$@db"}})

    def test_that_name_a_file_are_taken_as_they_are(self, tmp_path: Path) -> None:
        file = tmp_path / "a.dstack.yml"
        file.write_text("type: service\nport: 8000\nimage: app\nenv: {PS1: '$ '}\n")

        assert load_service(file).env == {"PS1": "$ "}


def test_a_flow_that_a_deployment_runs_may_pass_any_dollar_to_another() -> None:
    with FlowRunContext.model_construct(flow_run=FlowRun.model_construct(deployment_id=None)):
        assert load_service({**SERVICE, "env": {"PS1": "$ "}}).env == {"PS1": "$ "}


def test_a_mapping_in_a_program_may_have_any_dollar() -> None:
    assert load_service({**SERVICE, "env": {"PS1": "$ "}}).env == {"PS1": "$ "}


def test_what_comes_from_the_environment_of_the_deployer_is_kept_for_later() -> None:
    keys = {
        "env": {"A": None, "B": "x-${{ env.OTHER }}", "C": "plain"},
        "registry_auth": {"username": "$oauthtoken", "password": "${{ env.KEY }}"},
    }
    service = load_service({**SERVICE, **keys})

    work = workload(service, {"A": "1", "OTHER": "2", "KEY": "3", "C": "no", "HOME": "no"})

    assert work.deployer == {"A": "1", "OTHER": "2", "KEY": "3"}
    assert work.environment.reveal() == {"A": "1", "B": "x-2", "C": "plain"}
    assert work.registry is not None
    assert work.registry.password.get_secret_value() == "3"
    assert "'3'" not in repr(work)
    record = service.model_dump(mode="json", exclude_unset=True)
    again = workload(load_service(load_configuration(record, environ={})), work.deployer)
    assert again.environment == work.environment
    assert again.registry == work.registry


PREFECT_YAML = """\
pull: []
deployments:
  - name: inline
    entrypoint: flow.py:deploy_service
    description: ""
    work_pool: {name: inline}
    parameters:
      configuration:
        type: service
        name: hello
        port: 8000
        image: app
        env: {DB: "http://me:${{ secrets.DB }}@db"}
"""


@pytest.mark.integration
def test_of_a_mapping_in_prefect_yaml_the_references_are_lost(
    tmp_path: Path, prefect_server: PrefectServer
) -> None:
    (tmp_path / "prefect.yaml").write_text(PREFECT_YAML)
    (tmp_path / "flow.py").write_text("from prefect_dstack import deploy_service\n")
    prefect = str(Path(sys.executable).with_name("prefect"))
    for command in (
        ["work-pool", "create", "inline", "--type", "process"],
        ["deploy", "--all", "--no-prompt"],
    ):
        subprocess.run([prefect, *command], cwd=tmp_path, check=True, capture_output=True, timeout=120)

    with get_client(sync_client=True) as client:
        parameters = client.read_deployment_by_name("deploy-service/inline").parameters

    with pytest.raises(ConfigurationError, match=r"<mapping>: env\.DB: has a '\$' alone"):
        load_configuration(parameters["configuration"], templated=True)
