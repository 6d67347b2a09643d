"""Deploy a service again on a schedule, if its image, files, configuration or model have changed."""

from prefect import flow

from prefect_dstack import Endpoint, deploy_service


@flow(name="scheduled-redeploy")
def scheduled_redeploy(
    configuration: str = "examples/hello.dstack.yml",
    name: str | None = None,
    model_asset: str | None = None,
    force: bool = False,
) -> Endpoint:
    """Replace the replicas of a service if what they are made of has changed; the log says what was compared.

    Args:
        configuration: The service.
        name: Its name; default: the configuration's.
        model_asset: The model that it loads: a path or `s3://bucket/key`; default: the configuration's.
        force: Replace the replicas even if nothing has changed.

    Returns:
        Where it answers.
    """
    return deploy_service(configuration, name=name, model_asset=model_asset, pull=True, force=force)


if __name__ == "__main__":
    scheduled_redeploy.serve(name="nightly", cron="0 3 * * *")
