"""The task that checks the hosts of a fleet."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from prefect_dstack.backends.fleet import Fleet
from prefect_dstack.backends.inspection import HostReport, check_fleet

__all__ = ["check_hosts"]


@task(name="check-hosts", task_run_name="check-hosts {fleet.name}", cache_policy=NO_CACHE)
def check_hosts(fleet: Fleet) -> list[HostReport]:
    """Check every host of a fleet, all at once.

    Args:
        fleet: The fleet.

    Returns:
        What was found, host by host.
    """
    logger = get_run_logger()
    reports = check_fleet(fleet)
    for report in reports:
        for problem in report.problems:
            logger.warning("%s: %s: %s", report.host, problem.summary, problem.remedy)
        if report.usable:
            logger.info("%s: ready", report.host)
    return reports
