"""What Prefect makes of the parameters of a deployment, and what is made of that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from prefect_dstack import deploy_service
from prefect_dstack.configurations import load_configuration
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.flows.served import is_of_deployment
from prefect_dstack.services.loading import load_service
from tests.prefect_server import PrefectServer

SERVICE: dict[str, Any] = {"type": "service", "name": "hello", "port": 8000, "image": "app"}


@pytest.mark.parametrize("deployment", [uuid4(), None])
def test_only_the_flow_run_of_a_deployment_has_its_parameters(deployment: UUID | None) -> None:
    assert not is_of_deployment()
    run: Any = FlowRun.model_construct
    context: Any = FlowRunContext.model_construct
    with context(flow_run=run(deployment_id=deployment)):
        assert is_of_deployment() is (deployment is not None)


def test_the_form_asks_first_for_what_people_set_first() -> None:
    schema = deploy_service.parameters

    assert list(schema.properties) == [
        "configuration",
        "name",
        "force",
        "approval",
        "profile",
        "args",
        "move",
        "directory",
        "pull",
        "model_asset",
        "annotations",
    ]
    assert [it["type"] for it in schema.properties["configuration"]["anyOf"]] == ["string", "object"]
    assert schema.required == ["configuration"]
    assert all(it["description"] for it in schema.properties.values())
    assert not schema.definitions, "every key of a configuration would be a field"


def test_a_mapping_that_prefect_has_taken_a_reference_out_of_is_refused() -> None:
    service = {**SERVICE, "env": {"DB": "http://me:$@db"}}

    with pytest.raises(ConfigurationError, match=r"env\.DB: has a '\$' alone, as Prefect leaves it"):
        load_service(service, templated=True)
    assert load_service(service).env == {"DB": "http://me:$@db"}


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
