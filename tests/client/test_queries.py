"""What programs learn of services, in sync and async code, and as results that Prefect keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import State, flow, task

import prefect_dstack
from prefect_dstack import Endpoint, RevisionOverview, ServiceOverview
from prefect_dstack.errors import ConflictError, NotFoundError, UserError
from tests.flows.conftest import get, hello
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

# Prefect leaves connections of its clients open when a run of an async flow ends.
LEFT_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Deploy = Callable[..., Endpoint]


def test_everything_is_found_in_sync_and_async_code(deploy: Deploy, name: str) -> None:
    deploy(env={"GREETING": "one"})
    endpoint = deploy(env={"GREETING": "two"})

    async def ask() -> list[Any]:
        return [
            await prefect_dstack.alist_services([name]),
            await prefect_dstack.aget_service(name),
            await prefect_dstack.aget_endpoint(name),
            await prefect_dstack.alist_revisions(name),
            [line async for line in prefect_dstack.aread_logs(name, tail=1)],
        ]

    service = prefect_dstack.get_service(name)
    revisions = prefect_dstack.list_revisions(name)
    logs = list(prefect_dstack.read_logs(name, tail=1))
    assert (service.state, service.revision, service.serving) == ("serving", 2, 1)
    assert prefect_dstack.get_endpoint(name) == endpoint
    assert [(it.number, it.outcome) for it in revisions] == [(1, "superseded"), (2, "active")]
    assert "+  GREETING: two" in revisions[1].changes.splitlines()
    assert len(logs) == 1
    (listed,), found, *rest = asyncio.run(ask())
    assert lasting(listed) == lasting(found) == lasting(service)
    assert rest == [endpoint, revisions, logs]
    assert name in [it.name for it in prefect_dstack.list_services()]


@pytest.mark.usefixtures("home", "prefect_server")
def test_what_is_not_there_is_an_error(deploy: Deploy, stop: Callable[[], None], name: str) -> None:
    for function in (
        prefect_dstack.get_service,
        prefect_dstack.get_endpoint,
        prefect_dstack.list_revisions,
        prefect_dstack.promote_service,
    ):
        with pytest.raises(NotFoundError, match="there is no such service"):
            function(name)
    deploy()
    with pytest.raises(ConflictError, match="no canary waits"):
        prefect_dstack.promote_service(name)
    stop()
    with pytest.raises(ConflictError, match="does not serve"):
        prefect_dstack.get_endpoint(name)
    assert prefect_dstack.get_service(name).state == "stopped"


def test_followed_logs_end_when_their_reader_is_cancelled(deploy: Deploy, name: str) -> None:
    deploy()
    seen: list[str] = []

    async def follow() -> None:
        async for line in prefect_dstack.aread_logs(name, follow=True):
            seen.append(line)

    async def main() -> None:
        reader = asyncio.create_task(follow())
        await asyncio.to_thread(wait_until, lambda: seen, 20, "a line is read")
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

    asyncio.run(main())


@LEFT_OPEN
def test_awaiting_the_sync_function_deploys_nothing(
    prefect_server: PrefectServer, home: Home, name: str
) -> None:
    @flow
    async def mistaken() -> Any:
        return await prefect_dstack.deploy_service(hello(name))  # type: ignore[misc]

    with pytest.raises(UserError, match="await adeploy_service instead"):
        asyncio.run(mistaken())
    with pytest.raises(NotFoundError):
        prefect_dstack.get_service(name)


@LEFT_OPEN
def test_a_sync_flow_deploys_within_tasks_and_async_flows(deploy: Deploy, name: str) -> None:
    @task
    def in_a_task() -> Endpoint:
        return deploy()

    @flow
    async def in_an_async_flow() -> Endpoint:
        return deploy()

    @flow
    def pipeline() -> Endpoint:
        return in_a_task()

    assert pipeline().revision == 1
    assert not asyncio.run(in_an_async_flow()).changed


def test_relative_paths_of_a_mapping_start_from_a_directory(
    deploy: Deploy, name: str, tmp_path: Path
) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.json").write_text('{"page": "mine"}')
    served = hello(
        name, commands=["exec python3 -m http.server $PORT"], probes=[{"type": "http", "url": "/"}]
    )

    endpoint = prefect_dstack.deploy_service(served, directory=tmp_path / "pages")

    assert get(f"{endpoint.url}/index.json") == {"page": "mine"}


@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_results_are_kept_by_prefect_and_read_back(deploy: Deploy, name: str, serializer: str) -> None:
    @flow(persist_result=True, result_serializer=serializer)
    def pipeline() -> tuple[Endpoint, ServiceOverview, list[RevisionOverview]]:
        return deploy(), prefect_dstack.get_service(name), prefect_dstack.list_revisions(name)

    state: State[Any] = pipeline(return_state=True)
    flow_run = state.state_details.flow_run_id
    assert flow_run is not None

    endpoint, service, revisions = _result_of(flow_run)

    assert isinstance(endpoint, Endpoint)
    assert endpoint == prefect_dstack.get_endpoint(name)
    assert lasting(service) == lasting(prefect_dstack.get_service(name))
    assert list(revisions) == prefect_dstack.list_revisions(name)


def lasting(service: ServiceOverview) -> dict[str, Any]:
    """A service without what changes from one look to the next, such as ages and figures."""
    return service.model_dump(exclude={"replicas"})


def _result_of(flow_run: Any) -> Any:
    """Read a result as any other process would, by what the Prefect API knows of its run."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run).state
    assert state is not None
    return state.result()
