"""A work pool of type docker, as the how-to guide has it: each flow run is a container that keeps nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect_aws import AwsClientParameters, AwsCredentials, S3Bucket

from prefect_dstack import create_gateway, delete_gateway
from prefect_dstack.flows.fleets import apply_fleet, delete_fleet
from prefect_dstack.store.records import load_record
from tests.flows.lab import FLEET, GATEWAY, Lab
from tests.flows.test_documented import BIN, DOCS, ROOT
from tests.polling import wait_until
from tests.prefect_server import PrefectServer
from tests.testbed.ec2.account import Account
from tests.testbed.ec2.fixtures import _aws, aws
from tests.testbed.ec2.server import KEY_ID
from tests.testbed.engine import LocalEngine
from tests.testbed.images import load_image

__all__ = ["_aws", "aws"]

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(1200)]

FLOWS = ("deploy-service", "scale-service", "rollback-service", "stop-service")


class Pool:
    """A work pool with a worker.

    Args:
        name: Of the pool.
        server: Where it is.
        engine: Where the worker starts containers.
    """

    def __init__(self, name: str, server: PrefectServer, engine: LocalEngine) -> None:
        self.name, self._engine = name, engine
        self._environment = {
            **os.environ,
            "PREFECT_API_URL": server.url,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "DOCKER_HOST": engine.url,
        }
        self._worker: subprocess.Popen[bytes] | None = None

    def prefect(self, *arguments: str | Path) -> None:
        """Run a command of Prefect, where our flows are."""
        subprocess.run(
            [BIN / "prefect", "--no-prompt", *arguments],
            cwd=ROOT,
            env=self._environment,
            check=True,
            capture_output=True,
            timeout=300,
        )

    def start(self, log: Path) -> None:
        """Start the worker."""
        command = [str(BIN / "prefect"), "worker", "start", "--pool", self.name, "--type", "docker"]
        with log.open("wb") as output:
            self._worker = subprocess.Popen(
                command,
                cwd=log.parent,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def run(self, flow: str, **parameters: Any) -> None:
        """Run a deployment to its end, which must be a good one."""
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(f"{flow}/default")
            run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

            def is_over() -> bool:
                state = client.read_flow_run(run.id).state
                return state is not None and state.is_final()

            wait_until(is_over, 400, f"{flow} has ended", interval=0.5)
            state = client.read_flow_run(run.id).state
        assert state is not None
        assert state.is_completed(), state

    def containers(self) -> list[str]:
        """The containers of flow runs that are still there."""
        with self._engine.docker() as client:
            found = client.containers.list(all=True, filters={"label": "io.prefect.flow-run-id"})
            return [str(container.name) for container in found]

    def end(self) -> None:
        """End the worker, and whatever it has started."""
        if self._worker is not None:
            self._worker.terminate()
            self._worker.wait()
        with self._engine.docker() as client:
            for name in self.containers():
                client.containers.get(name).remove(force=True)
        with get_client(sync_client=True) as client:
            of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self.name]))
            for deployment in client.read_deployments(work_pool_filter=of_pool):
                client.delete_deployment(deployment.id)
            client.delete_work_pool(self.name)


@pytest.fixture
def edge(lab: Lab) -> Iterator[str]:
    """The address of a gateway before a fleet of hosts."""
    apply_fleet(lab.fleet())
    create_gateway(lab.gateway())
    yield lab.edge.address
    delete_gateway(GATEWAY)
    delete_fleet(FLEET)


@pytest.fixture
def bucket(aws: Account, name: str, prefect_server: PrefectServer) -> str:
    """A block that names a bucket."""
    aws.client("s3").create_bucket(Bucket="example-models")
    credentials = AwsCredentials(
        aws_access_key_id=KEY_ID,
        aws_secret_access_key="secret",
        region_name="us-east-1",
        aws_client_parameters=AwsClientParameters(endpoint_url=aws.url),
    )
    block = S3Bucket(bucket_name="example-models", bucket_folder="revisions", credentials=credentials)
    block.save(name, _sync=True)  # type: ignore[call-arg]
    return f"s3-bucket/{name}"


def documented(name: str, bucket: str, keys: Path) -> str:
    """Our `prefect.yaml` with the work pool of the how-to guide, and an image that stands in for ours."""
    guide = (DOCS / "how-to/workers.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE)
    pool = yaml.safe_load(block)["definitions"]["work_pool"]
    variables = pool["job_variables"]
    assert {"PREFECT_DSTACK_BUNDLE_STORAGE", "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"} <= variables[
        "env"
    ].keys()
    # The image has the loader alone; programs, their libraries and our flows are this machine's.
    shown = [ROOT, sys.base_prefix, "/lib/x86_64-linux-gnu", keys]
    variables |= {"image": "testbed/python:1", "volumes": [f"{path}:{path}:ro" for path in shown]}
    variables["env"] |= {
        "HOME": "/root",
        "PATH": f"{BIN}:/usr/local/bin:/bin",
        "PREFECT_DSTACK_BUNDLE_STORAGE": bucket,
        "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": bucket,
    }
    ours = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    assert all(
        deployment["work_pool"] == ours["definitions"]["work_pool"] for deployment in ours["deployments"]
    )
    for deployment in ours["deployments"]:
        deployment["work_pool"] = {**pool, "name": name}
    return yaml.safe_dump({key: ours[key] for key in ("name", "pull", "deployments")})


@pytest.fixture
def pool(
    docker_engine: LocalEngine,
    prefect_server: PrefectServer,
    lab: Lab,
    bucket: str,
    name: str,
    tmp_path: Path,
) -> Iterator[Pool]:
    """The work pool, with our deployments and a worker."""
    load_image(docker_engine, "python")
    pool = Pool(name, prefect_server, docker_engine)
    file = tmp_path / "prefect.yaml"
    file.write_text(documented(name, bucket, Path(lab.edge.identity_file).parent))
    pool.prefect("work-pool", "create", name, "--type", "docker")
    pool.prefect(
        "deploy", "--prefect-file", file, *(part for flow in FLOWS for part in ("-n", f"{flow}/default"))
    )
    pool.start(tmp_path / "worker.log")
    yield pool
    pool.end()


def test_containers_that_share_an_api_and_a_bucket_deploy_scale_and_stop(
    pool: Pool, edge: str, lab: Lab, aws: Account, name: str
) -> None:
    def service(version: str) -> dict[str, Any]:
        return lab.service(
            name,
            replicas=1,
            fleets=[FLEET],
            gateway=GATEWAY,
            files=[f"{ROOT}/examples/hello:/srv/hello"],
            env={"VERSION": version},
        )

    def version() -> str:
        return str(httpx.get(f"http://{edge}/").json()["version"])

    pool.run("deploy-service", configuration=service("one"))
    assert version() == "one"
    pool.run("scale-service", name=name, replicas=2)
    pool.run("deploy-service", configuration=service("two"))
    assert version() == "two"
    pool.run("rollback-service", name=name)
    assert version() == "one"
    record = load_record(name)
    assert (record.active, len(record.wanted_names), record.deploying) == (1, 2, None)
    listed = aws.client("s3").list_objects_v2(Bucket="example-models", Prefix="revisions/")["Contents"]
    assert f"revisions/{record.revision(1).bundle}.tar" in {found["Key"] for found in listed}

    pool.run("stop-service", name=name)
    assert load_record(name).active is None
    wait_until(lambda: not pool.containers(), 30, "the containers are gone")
