"""The loop of the resident controller."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import httpx

from prefect_dstack.domain.record import AUTOSCALER, LOST, Deploying, ServiceRecord
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.flows.reconcile import reconcile_services
from prefect_dstack.flows.renew_certificates import renew_certificates
from prefect_dstack.flows.replace import replace_replica
from prefect_dstack.flows.restore import restore_service
from prefect_dstack.flows.scale import scale_service
from prefect_dstack.flows.substitute import substitute_replicas
from prefect_dstack.gateways.look import GatewayLook
from prefect_dstack.hosts.identity import machine_identity
from prefect_dstack.infrastructure.certificates import lacking
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.resident.background import WATCHING
from prefect_dstack.resident.leadership import BEAT, Leadership
from prefect_dstack.resident.load_pages import LoadPages
from prefect_dstack.resident.metrics import MetricsServer
from prefect_dstack.resident.pacing import Pace
from prefect_dstack.resident.scaling import ScalingChange
from prefect_dstack.resident.watching import HungReplica, ServiceWatch
from prefect_dstack.services.location import is_elsewhere
from prefect_dstack.services.reconciliation import reconcile
from prefect_dstack.settings import settings
from prefect_dstack.store.clients import sharing_client
from prefect_dstack.store.records import Known, find_record, readable_records
from prefect_dstack.store.runs import has_died
from prefect_dstack.store.sources import resolve_infrastructure, seen_at_once

__all__ = ["Controller", "run_controller"]

logger = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two looks at the load of services."""
RECORDS_AGE = BEAT
FULL_PASS = 60.0
CERTIFICATES = 3600.0
INTERRUPTIONS = 10.0
"""Seconds between two looks for spot machines that are taken back; EC2 says so 120 s before."""
INTERRUPTED = "the provider takes back their machines"
LOAD = 60.0
"""Seconds between two looks at what all services bear, for their pages."""
PARALLEL_CHANGES = 16


class Controller:
    """Watches services, and starts a flow run for each thing that must change.

    It remembers nothing that a second one could not find out. Endpoints do not depend on it to serve.

    Args:
        clock: Seconds, by a clock that only goes forward.

    Raises:
        ConflictError: If the port for metrics is in use.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        own = settings()
        port = own.metrics_port
        self._metrics = None if port is None else MetricsServer(own.metrics_address, port)
        self._watches: dict[str, ServiceWatch] = {}
        self._infrastructure: Infrastructure | None = None
        self._known: Known = {}
        here = machine_identity(own.home)
        self._leadership = Leadership(f"{here.id}-{os.getpid()}", str(here))
        self._pool = ThreadPoolExecutor(PARALLEL_CHANGES, "controller")
        self._under_way: dict[str, Future[None]] = {}
        self._pages = LoadPages(clock)
        # The flow run of the last deployment that was undone, by service.
        self._taken_back: dict[str, str] = {}
        self._interrupted: list[Stamp] = []
        self._beating, self._reading = Pace(BEAT, clock), Pace(RECORDS_AGE, clock)
        # A pass is the work of many threads.
        self._looking, self._passing = Pace(TICK, clock), Pace(FULL_PASS, clock, time.process_time)
        self._renewing, self._drawing = Pace(CERTIFICATES, clock), Pace(LOAD, clock)
        self._asking = Pace(INTERRUPTIONS, clock)
        self._leads = False

    def tick(self) -> None:
        """Check everything that is due once, and start the changes it needs."""
        try:
            if self._beating.due or self._reading.due:
                with sharing_client():
                    self._beating.keep(self._beat)
                    if self._reading.due:
                        self._reading.keep(self._read_records)
        except (httpx.HTTPError, PrefectDstackError) as error:
            logger.warning("the Prefect API does not answer; going on with what is known: %s", error)
        infrastructure = self._infrastructure
        if infrastructure is None:
            return
        if self._looking.due:
            self._looking.keep(lambda: self._look(infrastructure))
        self._leave_interrupted(infrastructure)
        if self._drawing.due:
            mine = [
                it.record for it in self._watches.values() if self._watches_over(it.record, infrastructure)
            ]
            self._start("load", lambda: self._drawing.keep(lambda: self._pages.look(infrastructure, mine)))
        if self._passing.due:
            self._start("reconcile", lambda: self._reconcile(infrastructure))
        if self._renewing.due:
            self._start("certificates", lambda: self._renewing.keep(lambda: _renew(infrastructure)))

    def _look(self, infrastructure: Infrastructure) -> None:
        """Look at each gateway once, and start what its services need by that."""
        watches: dict[str, list[ServiceWatch]] = {}
        for watch in self._watches.values():
            needed = watch.is_scaled or watch.replaces_hung
            if needed and self._is_mine(watch.record, infrastructure):
                watches.setdefault(watch.record.gateway, []).append(watch)
        for name, behind in watches.items():
            gateway = infrastructure.find_gateway(name)
            if gateway is None:
                continue
            try:
                seen = gateway.control.look()
            except PrefectDstackError as error:
                logger.debug("gateway %s says nothing of its services: %s", name, error)
                continue
            for watch in behind:
                self._look_at(watch, seen, gateway, infrastructure)

    def _look_at(
        self, watch: ServiceWatch, seen: GatewayLook, gateway: ManagedGateway, infrastructure: Infrastructure
    ) -> None:
        name = watch.record.name
        if watch.is_scaled:
            watch.look(seen, gateway, infrastructure)
            change = watch.change()
            if change is not None:
                self._change(f"change {name}", partial(_scale, change))
        hung = watch.hung(seen)
        if hung is not None:
            self._change(f"change {name}", partial(_replace, hung))

    def _reconcile(self, infrastructure: Infrastructure) -> None:
        """Compare without a flow run, and start one only where something differs."""
        with sharing_client(), seen_at_once():
            found = self._passing.keep(lambda: reconcile(infrastructure, logger, dry_run=True, foreign=False))
        if found.done:
            logger.info("repairing: %s", "; ".join(found.done))
            self._then_read(reconcile_services)

    def _leave_interrupted(self, infrastructure: Infrastructure) -> None:
        """Have others take the place of replicas whose machines are taken back."""
        if not (self._interrupted or self._asking.due):
            return
        at_risk = [
            it.record
            for it in self._watches.values()
            if it.may_be_interrupted and self._is_mine(it.record, infrastructure)
        ]
        interrupted, self._interrupted = self._interrupted, []
        for record in at_risk:
            names = [stamp.name for stamp in interrupted if stamp.name in record.wanted_names]
            if names:
                self._change(f"change {record.name}", partial(_substitute, record.name, sorted(names)))
        if at_risk and self._asking.due:
            self._start("interruptions", partial(self._ask_for_interruptions, infrastructure))

    def _ask_for_interruptions(self, infrastructure: Infrastructure) -> None:
        self._interrupted = self._asking.keep(infrastructure.interrupted)

    def close(self) -> None:
        """Step down as leader; what is under way runs to its end."""
        if self._leads:
            self._leadership.resign()
        self._pool.shutdown(wait=True)
        if self._metrics is not None:
            self._metrics.close()

    def _beat(self) -> None:
        self._leads = self._leadership.lead()

    def _read_records(self) -> None:
        with seen_at_once():
            infrastructure = resolve_infrastructure()
            records, _ = readable_records(self._known)
        self._infrastructure = infrastructure
        if self._metrics is not None:
            self._metrics.follow(infrastructure, records, leads=self._leads)
        for record in records:
            if record.name in self._watches:
                self._watches[record.name].update(record)
            else:
                self._watches[record.name] = ServiceWatch(record, self._clock)
        for name in self._watches.keys() - {record.name for record in records}:
            del self._watches[name]
            self._taken_back.pop(name, None)
        for record in records:
            if record.deploying is not None:
                self._take_back(record, record.deploying, infrastructure)

    def _is_mine(self, record: ServiceRecord, infrastructure: Infrastructure) -> bool:
        return record.deploying is None and self._watches_over(record, infrastructure)

    def _watches_over(self, record: ServiceRecord, infrastructure: Infrastructure) -> bool:
        """Return whether this controller, and no other one, looks after a service."""
        if is_elsewhere(record, infrastructure.here):
            return False
        return record.location is not None or self._leads

    def _take_back(
        self, record: ServiceRecord, deployment: Deploying, infrastructure: Infrastructure
    ) -> None:
        """Undo a deployment that has died; if that fails, the full pass tries it again."""
        place = deployment.location or record.location
        mine = self._leads if place is None else place.id == infrastructure.here.id
        tried = self._taken_back.get(record.name) == deployment.flow_run
        if mine and not tried and has_died(deployment) and _is_under_way(record.name, deployment):
            self._taken_back[record.name] = deployment.flow_run
            self._change(f"restore {record.name}", partial(_restore, record.name))

    def _change(self, key: str, action: Callable[[], None]) -> None:
        """Change something in the background, unless that is under way, and read what has become of it."""
        self._start(key, partial(self._then_read, action))

    def _then_read(self, action: Callable[[], object]) -> None:
        try:
            action()
        finally:
            self._reading.hurry()

    def _start(self, key: str, action: Callable[[], None]) -> None:
        """Do something in the background, unless it is under way."""
        running = self._under_way.get(key)
        if running is not None and not running.done():
            return
        if running is not None and (error := running.exception()) is not None:
            logger.error("%s: %s", key, error)
        self._under_way[key] = self._pool.submit(_contained, action)


def _contained(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - one service must not end the watch over the others
        logger.error("%s", error)


def _scale(change: ScalingChange) -> None:
    logger.info("autoscale %s", change)
    scale_service(
        change.service,
        change.replicas,
        reason=change.reason,
        set_by=AUTOSCALER,
        pin=False,
        group=change.group,
    )


def _is_under_way(service: str, deployment: Deploying) -> bool:
    """Return whether the record still has a deployment, which may have ended since it was read."""
    fresh = find_record(service)
    return fresh is not None and fresh.deploying == deployment


def _replace(hung: HungReplica) -> None:
    logger.info("replacing %s: %s", hung.replica, hung.reason)
    replace_replica(hung.service, hung.replica, hung.reason)


def _substitute(service: str, replicas: list[str]) -> None:
    logger.info("replacing %s: %s", ", ".join(replicas), INTERRUPTED)
    substitute_replicas(service, replicas, INTERRUPTED)


def _restore(service: str) -> None:
    logger.info("restoring %s: %s", service, LOST)
    restore_service(service, reason=LOST)


def _renew(infrastructure: Infrastructure) -> None:
    for name in infrastructure.gateway_names:
        try:
            gateway = infrastructure.gateway(name)
            state = gateway.state()
            if (
                state is not None
                and state.https_port is not None
                and lacking(gateway, list(state.routes.values()))
            ):
                renew_certificates(name)
        except PrefectDstackError as error:
            logger.warning("gateway %s: %s", name, error)


def run_controller(stop: threading.Event | None = None) -> None:
    """Watch all services until told to stop.

    Args:
        stop: Set when it is to end; None: never.
    """
    stop = stop or threading.Event()
    controller = Controller()
    logger.info(WATCHING)
    try:
        while not stop.wait(TICK):
            controller.tick()
    finally:
        controller.close()
        logger.info("stopped watching")
