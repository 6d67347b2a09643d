"""Blue and green: all of the new revision stands beside the old one until a person has looked at it.

The flow run is suspended meanwhile, which takes a deployment: serve this file, or deploy it to a work pool.
"""

from prefect import flow, suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from prefect_dstack import Endpoint, approve_service, deploy_service, get_endpoint, reject_service

DAY = 24 * 3600


class Decision(RunInput):
    """What a person enters when the flow run is resumed."""

    switch: bool = Field(default=True, description="Whether the new revision gets the requests.")
    by: str = Field(default="somebody in the Prefect UI", description="Your name, for the history.")
    reason: str = Field(default="", description="Why, for the history.")


@flow(name="blue-green-with-approval", persist_result=True)
def blue_green_with_approval(
    configuration: str = "examples/blue-green.dstack.yml", name: str | None = None
) -> Endpoint:
    """Deploy a revision beside the one that serves, and switch to it, or take it back, as a person decides.

    Args:
        configuration: The service.
        name: Its name; default: the configuration's.

    Returns:
        Where the service answers, with the new revision or still with the old one.
    """
    # A flow run that is resumed begins anew, and Prefect gives it the result of what it has deployed already.
    endpoint = deploy_service(configuration, name=name, approval=True)
    green = endpoint.waiting
    if green is None:
        return endpoint
    shown = f"{green.question}\n\nTry it at {green.private_url} on {green.machine}."
    decision = suspend_flow_run(
        wait_for_input=Decision.with_initial_data(description=shown),
        timeout=DAY,
        key=f"{endpoint.service}-{green.revision}",
    )
    if decision.switch:
        return approve_service(endpoint.service, decision.reason, by=decision.by)
    reject_service(endpoint.service, decision.reason, by=decision.by)
    return get_endpoint(endpoint.service)


if __name__ == "__main__":
    blue_green_with_approval.serve(name="default")
