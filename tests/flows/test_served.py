"""What a flow run leaves with the Prefect API: a result that others can read, and nothing of its tasks."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import MissingResult

from prefect_dstack.domain.record import Endpoint
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.flows.served import served_flow

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]

ENDPOINT = Endpoint(url="http://127.0.0.1:8080", service="hello", revision=3, replicas=["hello-3-0"])


@task
def password() -> str:
    return "hunter2"


@served_flow(name="gives-an-endpoint")
def gives_an_endpoint(seen: dict[str, Any] | None = None) -> Endpoint:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    (seen if seen is not None else {})["id"] = context.flow_run.id
    password()
    return ENDPOINT


@served_flow(name="fails")
def fails() -> None:
    error = ConfigurationError("unknown key", source="serve.dstack.yml", line=3, key="prot")
    raise error.with_message(f"hello@2 failed: {error}; hello@1 serves on")


def from_api(flow_run: UUID) -> State[Any]:
    """The final state as another process sees it."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run).state
    assert state is not None
    return state


def run_of(state: State[Any]) -> UUID:
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


def test_the_caller_of_a_deployment_gets_its_result() -> None:
    state = from_api(run_of(gives_an_endpoint(return_state=True)))

    assert state.result() == ENDPOINT
    assert state.message == "hello@3 serves at http://127.0.0.1:8080"


def test_the_caller_in_the_same_process_gets_it_too() -> None:
    @flow
    def training() -> str:
        return gives_an_endpoint().url

    assert gives_an_endpoint() == ENDPOINT
    assert training() == ENDPOINT.url


def test_results_of_tasks_are_not_kept() -> None:
    run = run_of(gives_an_endpoint(return_state=True))

    with get_client(sync_client=True) as client:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        (found,) = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
    assert found.state is not None
    with pytest.raises(MissingResult):
        found.state.result()


def test_the_caller_of_a_deployment_gets_its_error() -> None:
    state = from_api(run_of(fails(return_state=True)))

    with pytest.raises(ConfigurationError) as caught:
        state.result()

    assert str(caught.value) == ("hello@2 failed: serve.dstack.yml:3: prot: unknown key; hello@1 serves on")
    assert (caught.value.exit_code, caught.value.line) == (2, 3)


def test_options_can_be_changed() -> None:
    other = gives_an_endpoint.with_options(name="another", persist_result=False)

    assert other.name == "another"
    assert other._entrypoint == gives_an_endpoint._entrypoint
    assert other.version == gives_an_endpoint.version
    assert other() == ENDPOINT


def test_the_function_is_found_where_it_was_written() -> None:
    assert gives_an_endpoint._entrypoint is not None
    assert gives_an_endpoint._entrypoint.partition(":")[0] in (__name__, __file__)
    assert "seen" in gives_an_endpoint.parameters.properties
