"""The main job: from a configuration to a live endpoint."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from prefect.runtime import flow_run as current_run
from pydantic.json_schema import SkipJsonSchema

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.record import Endpoint
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.flows.hooks import restore_hook
from prefect_dstack.flows.served import is_of_deployment, served_flow
from prefect_dstack.flows.suspension import suspended_until_decided
from prefect_dstack.services.bundles import holding_bundle, share_bundle
from prefect_dstack.services.decision import decided
from prefect_dstack.services.deployed_evaluation import deployed_evaluation
from prefect_dstack.services.deployment import deploy, superseded, waiting_endpoint
from prefect_dstack.services.loading import load_service
from prefect_dstack.services.preparation import (
    check_annotations,
    prepare,
    with_files,
    with_model_asset,
)
from prefect_dstack.services.run import holding
from prefect_dstack.store.records import find_record, new_record

__all__ = ["adeploy_service", "deploy_service"]

# The form of the Prefect UI asks for text or a mapping: a path is text, and a function cannot be entered.
EvaluateParameter = Annotated[SkipJsonSchema[Any], "a function"]


def _run_name() -> str:
    parameters = current_run.get_parameters()
    name = parameters.get("name")
    if name is None:
        with contextlib.suppress(PrefectDstackError):
            name = load_configuration(parameters["configuration"], directory=parameters.get("directory")).name
    return f"deploy {name or 'service'}"


@served_flow(
    name="deploy-service",
    flow_run_name=_run_name,
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def deploy_service(
    configuration: str | SkipJsonSchema[Path] | dict[str, Any] | SkipJsonSchema[ServiceConfiguration],
    name: str | None = None,
    force: bool = False,
    approval: bool = False,
    profile: str | None = None,
    args: list[str] | None = None,
    move: bool = False,
    evaluate: EvaluateParameter = None,
    directory: str | Path | None = None,
    pull: bool = False,
    model_asset: str | None = None,
    annotations: dict[str, Any] | None = None,
) -> Endpoint:
    """Deploy a service, or a new revision of it in the place of the old one.

    The old revision serves until the new one has passed its probes, and gets no more requests then. If the
    new one does not make it, all that it created is removed and the old one serves on.

    Args:
        configuration: The path of a `*.dstack.yml`, YAML text, a mapping or a model.
        name: The name of the service; default: the configuration's.
        force: Replace the replicas even if nothing has changed.
        approval: Wait for a person before the new revision gets requests, as `rollout.approval` does.
        profile: The profile whose settings are used where the configuration has none.
        args: What `run.args` stands for in the configuration.
        move: Take over a service that runs on another machine; what runs there is ended when that machine
            is next reconciled.
        evaluate: Judges the new revision before it gets a request: a function, task or flow that is given a
            `Release` and returns an `Evaluation`, or whether it passes. It is asked instead of the deployment
            that `rollout.evaluation` names, and not at all where the replicas stay.
        directory: What relative paths start from, instead of the file's directory; of a mapping or YAML text,
            instead of the current one.
        pull: Ask the image's registry whether its tag stands for another image now, and replace the replicas
            if it does.
        model_asset: The model that the replicas load, instead of the configuration's `model_asset`: a path,
            `s3://bucket/key`, or another URI. New content takes new replicas, and the service becomes a
            Prefect asset that depends on it.
        annotations: What to write on a new revision, such as a commit or an accuracy; JSON.

    Returns:
        Where the service answers. If the new revision waits for approval, `waiting` is set, and what served
        before serves on; a flow run of a deployment is suspended instead, and returns after the decision.

    Raises:
        UserError: If the configuration, or what it runs, cannot work as it is.
        RejectedError: If it did not pass its evaluation, or a person rejected it.
        PrefectDstackError: If anything else fails.

    Example:
        ```python
        from prefect import flow
        from prefect_dstack import deploy_service


        @flow
        def train_and_deploy() -> str:
            endpoint = deploy_service("serve.dstack.yml")
            return endpoint.url
        ```
    """
    service = load_service(
        configuration,
        name=name,
        args=args or (),
        profile=profile,
        templated=is_of_deployment(),
        directory=directory,
    )
    approval = approval or service.rollout.approval
    deployed = deployed_evaluation(service)
    evaluate = deployed if evaluate is None else evaluate
    check_annotations(annotations or {})
    if model_asset is not None:
        service = with_model_asset(service, model_asset)
    with holding(service.name or "") as run:
        record = find_record(service.name or "") or new_record(service.name or "")
        if (newer := decided(record, run.flow_run) or superseded(record, run)) is not None:
            return newer
        if (endpoint := waiting_endpoint(record, run)) is None:
            prepared = with_files(prepare(service, run.infrastructure.sources), run.infrastructure)
            prepared = replace(prepared, pull=pull, annotations=annotations or {})
            with holding_bundle(prepared.files, run.infrastructure.bundles):
                share_bundle(service, prepared.files, run.infrastructure, run.log, renew=force)
                endpoint = deploy(
                    record, prepared, run, force=force, move=move, evaluate=evaluate, approval=approval
                )
    return suspended_until_decided(endpoint)


adeploy_service = asynchronous(deploy_service)
