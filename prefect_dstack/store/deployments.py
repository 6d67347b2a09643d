"""Prefect deployments of others: whether there is one, and runs that end with whoever asked for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import httpx
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling

from prefect_dstack.errors import DeploymentError, UserError
from prefect_dstack.store.clients import api_client

__all__ = ["has_deployment", "run_to_end"]

POLL = 1.0
REFUSED = (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY)


def has_deployment(name: str) -> bool:
    """Return whether the Prefect API has a deployment.

    Args:
        name: Its name, as `flow-name/deployment-name`.
    """
    with api_client() as client:
        try:
            client.read_deployment_by_name(name)
        except ObjectNotFound:
            return False
    return True


def run_to_end(
    name: str, parameters: Mapping[str, Any], *, run_name: str, tags: Sequence[str], timeout: float
) -> State:
    """Run a deployment as a child of the flow run that this code runs in, and wait until it has ended.

    The child is cancelled if this is left before: by a timeout, a cancellation, or any error.

    Args:
        name: The deployment, as `flow-name/deployment-name`.
        parameters: What its flow is given; JSON.
        run_name: The name of the flow run.
        tags: Its tags.
        timeout: Seconds that it may take, with the time until a worker starts it.

    Returns:
        Its final state.

    Raises:
        UserError: If its flow does not take the parameters.
        DeploymentError: If it has not ended in time, or was deleted.
    """
    begun = _begin(name, parameters, run_name, tags)
    deadline = time.monotonic() + timeout
    state = None
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError), api_client() as client:
                state = client.read_flow_run(begun).state
            if state is not None and state.is_final():
                return state
            time.sleep(POLL)
    except ObjectNotFound:
        raise DeploymentError(f"the flow run of '{name}' was deleted before it had ended") from None
    finally:
        if state is None or not state.is_final():
            _cancel(begun)
    if state is None or state.is_scheduled() or state.is_pending():
        raise DeploymentError(
            f"no worker has started a run of '{name}' within {timeout:g} s: start one for its work pool on "
            "this machine (prefect worker start --pool NAME), with room for one run more"
        )
    raise DeploymentError(f"'{name}' has not ended within {timeout:g} s")


def _begin(name: str, parameters: Mapping[str, Any], run_name: str, tags: Sequence[str]) -> UUID:
    try:
        begun = run_deployment(
            name,
            parameters=dict(parameters),
            flow_run_name=run_name,
            tags=tags,
            timeout=0,
            as_subflow=True,
        )
    except ObjectNotFound:
        raise UserError(f"there is no Prefect deployment '{name}' any more") from None
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in REFUSED:
            raise
        wanted = ", ".join(parameters)
        raise UserError(
            f"the flow of '{name}' must take the parameter {wanted}, and no other without a default"
        ) from error
    return begun.id  # type: ignore[union-attr]


def _cancel(flow_run: UUID) -> None:
    # It may have ended, or be gone; what goes wrong here is no reason to forget why we leave.
    with contextlib.suppress(ObjectNotFound, httpx.HTTPError), api_client() as client:
        client.set_flow_run_state(flow_run, Cancelling(message="Whoever waited for it has left."))
