"""A service's lock is one flow run's at a time, also after one of them has died."""

from __future__ import annotations

import threading
import time
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

from prefect_dstack.domain.record import Deploying
from prefect_dstack.store import locks
from prefect_dstack.store.locks import lock
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration


def nobody() -> Deploying | None:
    return None


def flow_run() -> str:
    return str(uuid4())


def leave(name: str) -> Deploying:
    """Take a lock as a process does that is killed while it holds it; return what its record says."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(f"prefect-dstack-{name}", 1)
        mine = flow_run()
        lease = locks._acquire(client, f"prefect-dstack-{name}", mine)
    # Its machine is this one, its process never was.
    return Deploying(revision=1, flow_run=mine, lease=str(lease))


def test_the_second_waits_for_the_first(prefect_server: PrefectServer, name: str) -> None:
    told: list[str] = []
    held = threading.Event()

    def second() -> None:
        with lock(name, flow_run(), nobody, told.append):
            held.set()

    waiting = threading.Thread(target=second)
    with lock(name, flow_run(), nobody, told.append):
        waiting.start()
        wait_until(lambda: told, 10, "it says that it waits")
        assert not held.is_set()
    waiting.join(10)
    assert held.is_set()
    assert len(told) == 1


def test_what_a_dead_holder_held_is_given_to_one_of_those_who_wait(
    prefect_server: PrefectServer, name: str
) -> None:
    dead, at_once, most = leave(name), [0], [0]
    guard = threading.Lock()

    def work() -> None:
        # Each goes by the record that it has read, in which the dead one is still the holder.
        with lock(name, flow_run(), lambda: dead, lambda _: None):
            with guard:
                at_once[0] += 1
                most[0] = max(most[0], at_once[0])
            time.sleep(0.5)
            with guard:
                at_once[0] -= 1

    began = time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1]
    assert time.monotonic() - began < 20


def test_the_end_of_a_dead_holders_lease_takes_nothing_from_the_next(
    prefect_server: PrefectServer, name: str
) -> None:
    dead = leave(name)
    with lock(name, flow_run(), lambda: dead, lambda _: None), get_client(sync_client=True) as client:
        # What the server does by itself once the lease is over.
        client.release_concurrency_slots_with_lease(dead.lease)  # type: ignore[arg-type]
        assert locks._acquire(client, f"prefect-dstack-{name}", flow_run()) is None


def test_a_slot_whose_lease_the_server_has_forgotten_is_freed(
    prefect_server: PrefectServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "FORGOTTEN", 1.0)
    with get_client(sync_client=True) as client:
        limit = f"prefect-dstack-{name}"
        client.upsert_global_concurrency_limit_by_name(limit, 1)
        client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(active_slots=1))
    dead = Deploying(revision=1, flow_run=flow_run(), lease=flow_run())
    with lock(name, flow_run(), lambda: dead, lambda _: None, timeout=20):
        pass


def test_who_is_not_let_in_says_so(prefect_server: PrefectServer, name: str) -> None:
    def ask() -> None:
        with lock(name, flow_run(), nobody, lambda _: None, timeout=0.5):
            raise AssertionError

    with (
        lock(name, flow_run(), nobody, lambda _: None),
        pytest.raises(TimeoutError, match="another flow run"),
    ):
        ask()


@pytest.mark.slow
def test_it_is_held_for_longer_than_a_lease(prefect_server: PrefectServer, name: str) -> None:
    with lock(name, flow_run(), nobody, lambda _: None), get_client(sync_client=True) as client:
        deadline = time.monotonic() + locks.LEASE + 20
        while time.monotonic() < deadline:
            assert locks._acquire(client, f"prefect-dstack-{name}", flow_run()) is None
            time.sleep(5)  # what is looked at is that nothing happens for so long
