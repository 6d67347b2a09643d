"""Prefect variables, for `${{ prefect.variables.NAME }}`."""

from __future__ import annotations

import json

from prefect_dstack.api import connect
from prefect_dstack.errors import NotFoundError
from prefect_dstack.store.clients import api_client

__all__ = ["lookup"]


def lookup(name: str) -> str:
    """Return the value of a Prefect variable as text.

    Args:
        name: The name of the variable.

    Returns:
        Its value; JSON where it is no text.

    Raises:
        NotFoundError: If there is no such variable.
        OrchestratorError: If no Prefect API answers.
    """
    connect(lambda _: None)
    with api_client() as client:
        found = client.read_variable_by_name(name)
    if found is None:
        raise NotFoundError(
            f"prefect.variables.{name}: there is no such Prefect variable; make it with: "
            f"prefect variable set {name} VALUE"
        )
    return found.value if isinstance(found.value, str) else json.dumps(found.value)
