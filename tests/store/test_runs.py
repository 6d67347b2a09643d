from __future__ import annotations

import platform
import subprocess
from uuid import uuid4

import psutil

from prefect_dstack.domain.record import Deploying
from prefect_dstack.store.runs import has_died
from tests.polling import wait_until


def test_a_deployment_has_died_with_its_process_although_nobody_asked_how_that_ended() -> None:
    process = subprocess.Popen(["true"])
    try:
        entry = psutil.Process(process.pid)
        wait_until(lambda: entry.status() == psutil.STATUS_ZOMBIE, 10, "it has ended")
        deployment = Deploying(
            revision=1,
            flow_run=str(uuid4()),
            lease=str(uuid4()),
            machine=platform.node(),
            process=process.pid,
            process_started=entry.create_time(),
        )
        assert has_died(deployment)
    finally:
        process.wait()
