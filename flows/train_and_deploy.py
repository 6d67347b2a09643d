"""A training pipeline that deploys its model: copy it and put your own training in."""

from pathlib import Path

from prefect import flow, task

from prefect_dstack import Endpoint, deploy_service


@task
def train() -> str:
    """Train the model.

    Returns:
        What the service shall say of it.
    """
    return "trained"


@flow(name="train-and-deploy", log_prints=True)
def train_and_deploy(configuration: str = "examples/hello.dstack.yml", name: str | None = None) -> Endpoint:
    """Train a model, then replace the one that serves without losing a request.

    Args:
        configuration: The service.
        name: Its name; default: the configuration's.

    Returns:
        Where it answers.
    """
    print(train())
    # Nothing in the file changes when a new model was trained, so say that the replicas must be replaced.
    endpoint = deploy_service(Path(configuration), name=name, force=True)
    print(f"{endpoint.service}@{endpoint.revision} serves at {endpoint.url}")
    return endpoint


if __name__ == "__main__":
    train_and_deploy()
