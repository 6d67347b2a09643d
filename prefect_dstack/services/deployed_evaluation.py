"""A Prefect deployment judges a new revision: the way of `rollout.evaluation`."""

from __future__ import annotations

from typing import cast

from prefect.client.schemas.objects import State
from prefect.exceptions import MissingResult

from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.domain.evaluation import Evaluation, Release
from prefect_dstack.errors import ConfigurationError, DeploymentError, UserError
from prefect_dstack.services.evaluation import Evaluate
from prefect_dstack.store.deployments import has_deployment, run_to_end

__all__ = ["deployed_evaluation"]

KEY = "rollout.evaluation"


def deployed_evaluation(configuration: ServiceConfiguration) -> Evaluate | None:
    """Return what judges new revisions of a service by its configuration.

    Args:
        configuration: The service.

    Returns:
        What runs the deployment that it names, and reads the verdict; None if it names none.

    Raises:
        ConfigurationError: If there is no such deployment.
    """
    rollout = configuration.rollout
    name, timeout = rollout.evaluation, rollout.evaluation_timeout
    if name is None:
        return None
    if not has_deployment(name):
        raise ConfigurationError(
            f"there is no Prefect deployment '{name}'; prefect deployment ls shows those that there are",
            source=configuration.source_name,
            line=configuration.line_of(KEY),
            key=KEY,
        )

    def evaluate(release: Release) -> Evaluation | bool:
        state = run_to_end(
            name,
            {"release": release.model_dump(mode="json")},
            run_name=f"evaluate {release.service}@{release.revision}",
            tags=[f"service:{release.service}"],
            timeout=timeout,
        )
        return _verdict(name, state)

    return evaluate


def _verdict(name: str, state: State) -> Evaluation | bool:
    """Return what a flow run that has ended makes of a release.

    Only what it returned can pass a release: a run whose result was not kept may have returned False.
    """
    message = (state.message or "").partition("\n")[0]
    if state.is_failed():
        return Evaluation(passed=False, reason=message or f"'{name}' failed")
    if not state.is_completed():
        ended = f"ended as {state.name}{f': {message}' if message else ''}"
        raise DeploymentError(f"{KEY}: '{name}' {ended}; nothing was judged")
    try:
        # What it returned is checked by whoever asked, as that of a function is.
        return cast("Evaluation | bool", state.result())
    except MissingResult as error:
        raise UserError(
            f"{KEY}: '{name}' has not kept what it returned; give its flow @flow(persist_result=True)"
        ) from error
    except Exception as error:
        raise DeploymentError(
            f"{KEY}: what '{name}' returned cannot be read here: {type(error).__name__}: {error}"
        ) from error
