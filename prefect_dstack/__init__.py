"""prefect-dstack turns a dstack-style YAML file into a live endpoint.

Importing this package is cheap; what it offers is loaded on first use.

Example:
    ```python
    from prefect_dstack import deploy_service

    endpoint = deploy_service("serve.dstack.yml")
    print(endpoint.url)
    ```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_dstack.api import connect
    from prefect_dstack.configurations import load_configuration
    from prefect_dstack.domain.evaluation import Evaluation, Release
    from prefect_dstack.domain.record import Endpoint
    from prefect_dstack.domain.run_record import RunResult
    from prefect_dstack.domain.tokens import NewToken, Token
    from prefect_dstack.flows.approval import (
        aapprove_service,
        approve_service,
        areject_service,
        reject_service,
    )
    from prefect_dstack.flows.delete import adelete_service, delete_service
    from prefect_dstack.flows.deploy import adeploy_service, deploy_service
    from prefect_dstack.flows.gateways import create_gateway, delete_gateway
    from prefect_dstack.flows.promote import apromote_service, promote_service
    from prefect_dstack.flows.reconcile import reconcile_services
    from prefect_dstack.flows.renew_certificates import renew_certificates
    from prefect_dstack.flows.rollback import arollback_service, rollback_service
    from prefect_dstack.flows.run_task import arun_task, run_task
    from prefect_dstack.flows.scale import ascale_service, scale_service
    from prefect_dstack.flows.stop import astop_service, stop_service
    from prefect_dstack.services.tokens import (
        acreate_token,
        alist_tokens,
        arevoke_token,
        create_token,
        list_tokens,
        revoke_token,
    )

__all__ = [
    "Endpoint",
    "Evaluation",
    "NewToken",
    "Release",
    "RunResult",
    "Token",
    "aapprove_service",
    "acreate_token",
    "adelete_service",
    "adeploy_service",
    "alist_tokens",
    "approve_service",
    "apromote_service",
    "areject_service",
    "arevoke_token",
    "arollback_service",
    "arun_task",
    "ascale_service",
    "astop_service",
    "connect",
    "create_gateway",
    "create_token",
    "delete_gateway",
    "delete_service",
    "deploy_service",
    "list_tokens",
    "load_configuration",
    "promote_service",
    "reconcile_services",
    "reject_service",
    "renew_certificates",
    "revoke_token",
    "rollback_service",
    "run_task",
    "scale_service",
    "stop_service",
]

_PLACES = {
    "Endpoint": "domain.record",
    "Evaluation": "domain.evaluation",
    "NewToken": "domain.tokens",
    "Release": "domain.evaluation",
    "RunResult": "domain.run_record",
    "Token": "domain.tokens",
    "aapprove_service": "flows.approval",
    "acreate_token": "services.tokens",
    "adelete_service": "flows.delete",
    "adeploy_service": "flows.deploy",
    "alist_tokens": "services.tokens",
    "approve_service": "flows.approval",
    "apromote_service": "flows.promote",
    "areject_service": "flows.approval",
    "arevoke_token": "services.tokens",
    "arollback_service": "flows.rollback",
    "arun_task": "flows.run_task",
    "ascale_service": "flows.scale",
    "astop_service": "flows.stop",
    "connect": "api",
    "create_gateway": "flows.gateways",
    "create_token": "services.tokens",
    "delete_gateway": "flows.gateways",
    "delete_service": "flows.delete",
    "deploy_service": "flows.deploy",
    "list_tokens": "services.tokens",
    "load_configuration": "configurations",
    "promote_service": "flows.promote",
    "reconcile_services": "flows.reconcile",
    "reject_service": "flows.approval",
    "renew_certificates": "flows.renew_certificates",
    "revoke_token": "services.tokens",
    "rollback_service": "flows.rollback",
    "run_task": "flows.run_task",
    "scale_service": "flows.scale",
    "stop_service": "flows.stop",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
