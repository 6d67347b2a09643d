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
    from prefect_dstack.client.queries import (
        aget_endpoint,
        aget_service,
        alist_revisions,
        alist_services,
        aread_logs,
        get_endpoint,
        get_service,
        list_revisions,
        list_services,
        read_logs,
    )
    from prefect_dstack.client.schedules import (
        acreate_schedule,
        adelete_schedule,
        alist_schedules,
        create_schedule,
        delete_schedule,
        list_schedules,
    )
    from prefect_dstack.client.temporary import service
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
    from prefect_dstack.flows.gateways import acreate_gateway, adelete_gateway, create_gateway, delete_gateway
    from prefect_dstack.flows.promote import apromote_service, promote_service
    from prefect_dstack.flows.reconcile import areconcile_services, reconcile_services
    from prefect_dstack.flows.renew_certificates import arenew_certificates, renew_certificates
    from prefect_dstack.flows.restart import arestart_service, restart_service
    from prefect_dstack.flows.rollback import arollback_service, rollback_service
    from prefect_dstack.flows.run_task import arun_task, run_task
    from prefect_dstack.flows.scale import ascale_service, scale_service
    from prefect_dstack.flows.stop import astop_service, stop_service
    from prefect_dstack.services.history import RevisionOverview
    from prefect_dstack.services.overview import ServiceOverview
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
    "RevisionOverview",
    "RunResult",
    "ScheduleOverview",
    "ServiceOverview",
    "Token",
    "aapprove_service",
    "acreate_gateway",
    "acreate_schedule",
    "acreate_token",
    "adelete_gateway",
    "adelete_schedule",
    "adelete_service",
    "adeploy_service",
    "aget_endpoint",
    "aget_service",
    "alist_revisions",
    "alist_schedules",
    "alist_services",
    "alist_tokens",
    "approve_service",
    "apromote_service",
    "aread_logs",
    "areconcile_services",
    "areject_service",
    "arenew_certificates",
    "arestart_service",
    "arevoke_token",
    "arollback_service",
    "arun_task",
    "ascale_service",
    "astop_service",
    "connect",
    "create_gateway",
    "create_schedule",
    "create_token",
    "delete_gateway",
    "delete_schedule",
    "delete_service",
    "deploy_service",
    "get_endpoint",
    "get_service",
    "list_revisions",
    "list_schedules",
    "list_services",
    "list_tokens",
    "load_configuration",
    "promote_service",
    "read_logs",
    "reconcile_services",
    "reject_service",
    "renew_certificates",
    "restart_service",
    "revoke_token",
    "rollback_service",
    "run_task",
    "scale_service",
    "service",
    "stop_service",
]

_PLACES = {
    "Endpoint": "domain.record",
    "Evaluation": "domain.evaluation",
    "NewToken": "domain.tokens",
    "Release": "domain.evaluation",
    "RevisionOverview": "services.history",
    "RunResult": "domain.run_record",
    "ScheduleOverview": "store.schedules",
    "ServiceOverview": "services.overview",
    "Token": "domain.tokens",
    "aapprove_service": "flows.approval",
    "acreate_gateway": "flows.gateways",
    "acreate_schedule": "client.schedules",
    "acreate_token": "services.tokens",
    "adelete_gateway": "flows.gateways",
    "adelete_schedule": "client.schedules",
    "adelete_service": "flows.delete",
    "adeploy_service": "flows.deploy",
    "aget_endpoint": "client.queries",
    "aget_service": "client.queries",
    "alist_revisions": "client.queries",
    "alist_schedules": "client.schedules",
    "alist_services": "client.queries",
    "alist_tokens": "services.tokens",
    "approve_service": "flows.approval",
    "apromote_service": "flows.promote",
    "aread_logs": "client.queries",
    "areconcile_services": "flows.reconcile",
    "areject_service": "flows.approval",
    "arenew_certificates": "flows.renew_certificates",
    "arestart_service": "flows.restart",
    "arevoke_token": "services.tokens",
    "arollback_service": "flows.rollback",
    "arun_task": "flows.run_task",
    "ascale_service": "flows.scale",
    "astop_service": "flows.stop",
    "connect": "api",
    "create_gateway": "flows.gateways",
    "create_schedule": "client.schedules",
    "create_token": "services.tokens",
    "delete_gateway": "flows.gateways",
    "delete_schedule": "client.schedules",
    "delete_service": "flows.delete",
    "deploy_service": "flows.deploy",
    "get_endpoint": "client.queries",
    "get_service": "client.queries",
    "list_revisions": "client.queries",
    "list_schedules": "client.schedules",
    "list_services": "client.queries",
    "list_tokens": "services.tokens",
    "load_configuration": "configurations",
    "promote_service": "flows.promote",
    "read_logs": "client.queries",
    "reconcile_services": "flows.reconcile",
    "reject_service": "flows.approval",
    "renew_certificates": "flows.renew_certificates",
    "restart_service": "flows.restart",
    "revoke_token": "services.tokens",
    "rollback_service": "flows.rollback",
    "run_task": "flows.run_task",
    "scale_service": "flows.scale",
    "service": "client.temporary",
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
