"""A job that brings an endpoint up, maps tasks over it, and takes it down whatever happens."""

import httpx
from prefect import flow, task

from prefect_dstack import service

Rows = list[list[float]]


@task(retries=2, task_run_name="score {number}")
def score(url: str, rows: Rows, number: int) -> list[int]:
    """Ask the endpoint for the classes of some rows."""
    answer = httpx.post(f"{url}/predict", json={"rows": rows}, timeout=60)
    return list(answer.raise_for_status().json()["labels"])


@flow(name="batch-score")
def batch_score(
    rows: Rows,
    configuration: str = "examples/moons/moons.dstack.yml",
    name: str = "moons-batch",
    size: int = 100,
) -> list[int]:
    """Score rows with a service that is there for this job only.

    Args:
        rows: What to score.
        configuration: The service, whose model flows/train_and_deploy.py has trained.
        name: Its name; no service of that name may serve yet.
        size: How many rows a task sends.

    Returns:
        The class of each row.
    """
    with service(configuration, name=name) as endpoint:
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        scored = score.map(endpoint.url, parts, range(len(parts))).result()
    return [label for part in scored for label in part]


if __name__ == "__main__":
    print(batch_score([[0.0, 1.0], [1.0, -0.5]]))
