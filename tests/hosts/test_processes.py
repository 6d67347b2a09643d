from __future__ import annotations

import os
import subprocess

import psutil

from prefect_dstack.hosts.processes import is_at_work, started_after_boot
from tests.polling import wait_until


def test_this_process_is_at_work() -> None:
    assert is_at_work(os.getpid())
    assert is_at_work(os.getpid(), started_after_boot(psutil.Process()))


def test_another_with_the_same_id_is_not_meant() -> None:
    assert not is_at_work(os.getpid(), started_after_boot(psutil.Process()) - 1)


def test_one_that_has_ended_is_not_at_work_before_its_parent_has_asked_and_after() -> None:
    process = subprocess.Popen(["true"])
    try:
        entry = psutil.Process(process.pid)
        started = started_after_boot(entry)
        wait_until(lambda: entry.status() == psutil.STATUS_ZOMBIE, 10, "it has ended")
        assert not is_at_work(process.pid)
        assert not is_at_work(process.pid, started)
    finally:
        process.wait()
    assert not is_at_work(process.pid, started)
