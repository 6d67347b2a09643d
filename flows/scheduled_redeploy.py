"""Replace the replicas of a service on a schedule, for example to pick up the newest model or image."""

from prefect import flow

from prefect_dstack import Endpoint, deploy_service


@flow(name="scheduled-redeploy")
def scheduled_redeploy(configuration: str = "examples/hello.dstack.yml") -> Endpoint:
    """Replace the replicas of a service, whether or not its file has changed.

    Args:
        configuration: The service.

    Returns:
        Where it answers.
    """
    return deploy_service(configuration, force=True)


if __name__ == "__main__":
    scheduled_redeploy.serve(name="nightly", cron="0 3 * * *")
