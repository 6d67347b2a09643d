"""Flows that find a Prefect API by themselves, keep their results, and let go of the hosts that they used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, get_type_hints

from prefect import Flow, get_run_logger
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings
from prefect.states import Completed

from prefect_dstack.api import connect, join_local_server
from prefect_dstack.asynchronous import refuse_await
from prefect_dstack.domain.record import Endpoint
from prefect_dstack.hosts.pool import shared_connections
from prefect_dstack.services.promotion import how_to_approve

__all__ = ["ServedFlow", "is_of_deployment", "served_flow"]

P = ParamSpec("P")
R = TypeVar("R")

TEMPORARY = (
    "this flow run uses a temporary Prefect server, which takes its time to start: call "
    "prefect_dstack.connect() before the flow, or start a server once with: prefect-dstack server start"
)

# A caller's own flow begins before any of ours is called, and Prefect chooses its API then.
if FlowRunContext.get() is None:
    join_local_server()


class ServedFlow(Flow[P, R]):
    """A flow that, called alone and with no Prefect API configured, uses the local server.

    Prefect would start a server for each such call, which takes longer than most deployments. All tasks of
    a run share one SSH connection to each host, which ends with it. The result, or the exception, is kept by
    Prefect, so that a caller of `run_deployment` can read it; those of its tasks are not.
    """

    def __init__(self, fn: Callable[P, R], *args: Any, **kwargs: Any) -> None:
        # Prefect reads the module, file and parameters of the function; with_options() hands on the wrapper.
        function = inspect.unwrap(fn)
        super().__init__(function, *args, **kwargs)
        self.fn = _reporting(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow."""
        caller = inspect.currentframe()
        refuse_await(None if caller is None else caller.f_back, self.fn.__name__)
        if FlowRunContext.get() is None:
            connect()
        elif get_current_settings().api.url is None:
            get_run_logger().warning(TEMPORARY)
        with shared_connections():
            return super().__call__(*args, **kwargs)


def is_of_deployment() -> bool:
    """Return whether a deployment's parameters are those of this flow run.

    They are not those of a flow that another one has called: its program has made them.
    """
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    return run is not None and run.deployment_id is not None


def served_flow(**options: Any) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Turn a function into a `ServedFlow`.

    Args:
        **options: Those of Prefect's `flow`.

    Returns:
        The decorator.
    """

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        # `.serve()` sends the function to another process without the module that its annotations name.
        function.__annotations__ = get_type_hints(function, include_extras=True)
        return ServedFlow(function, **{"persist_result": True, **options})

    return decorate


def _reporting(function: Callable[P, R]) -> Callable[P, R]:
    """Set the message of the final state to what serves, and keep no results of tasks."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        context = FlowRunContext.get()
        if context is None:
            return function(*args, **kwargs)
        # Tasks do as their flow does, and what they return may be long or secret.
        with context.model_copy(update={"persist_result": False}):
            result = function(*args, **kwargs)
        if isinstance(result, Endpoint):
            waiting = result.waiting
            if waiting is not None:
                message = f"{result.service}@{waiting.revision} waits: {how_to_approve(result.service)}"
                return Completed(name="WaitingForApproval", message=message, data=result)
            message = f"{result.service}@{result.revision} serves at {result.url}"
            return Completed(message=message, data=result)
        return result

    return run
