"""Secrets of configurations, kept as Prefect `Secret` blocks."""

from __future__ import annotations

from prefect.blocks.system import Secret

from prefect_dstack.errors import NotFoundError
from prefect_dstack.store import documents

__all__ = ["lookup"]


def lookup(name: str) -> str:
    """Read a secret.

    Args:
        name: What `${{ secrets.NAME }}` names. Prefect's block names have no capitals and no underscores,
            so `HF_TOKEN` is found as `hf-token` too.

    Returns:
        Its value, in clear.

    Raises:
        NotFoundError: If there is no such block.
    """
    names = dict.fromkeys([name, name.lower().replace("_", "-")])
    for block in names:
        found = documents.load(Secret, block)
        if found is not None:
            return str(found.get())
    wanted = list(names)[-1]
    raise NotFoundError(
        f"secrets.{name}: there is no Prefect Secret block '{wanted}'; make one in the Prefect UI, or with "
        f"python -c \"from prefect.blocks.system import Secret; Secret(value=input()).save('{wanted}')\""
    )
