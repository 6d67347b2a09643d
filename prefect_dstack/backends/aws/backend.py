"""Machines from Amazon EC2."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError
from pydantic import SecretStr

from prefect_dstack.backends.aws import instances as ec2
from prefect_dstack.backends.aws import tags as tagging
from prefect_dstack.backends.aws.account import Account
from prefect_dstack.backends.aws.catalog import instance_types
from prefect_dstack.backends.aws.clients import SessionFactory, quiet
from prefect_dstack.backends.aws.errors import AwsError, code_of, is_capacity, is_quota, translate, words
from prefect_dstack.backends.aws.interruptions import marked_instances
from prefect_dstack.backends.aws.machine import AwsMachine, reach
from prefect_dstack.backends.aws.network import network_name
from prefect_dstack.backends.aws.offers import BACKEND, Market, explain, select
from prefect_dstack.backends.aws.plan import Attempt, Attempts, client_token
from prefect_dstack.backends.aws.prices import on_demand_prices, spot_prices
from prefect_dstack.backends.aws.regions import check_regions
from prefect_dstack.backends.aws.settings import AwsSettings
from prefect_dstack.backends.base import (
    CheckResult,
    GatewayHost,
    GatewayMachines,
    Instance,
    Offer,
    Report,
    TxtRecords,
)
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.errors import CapacityError, GatewayError, NoOfferError, ProvisioningError
from prefect_dstack.gateways.attachment import Attachment
from prefect_dstack.gateways.host import HostPlace
from prefect_dstack.gateways.host_tunnels import HostTunnels

if TYPE_CHECKING:
    from prefect_dstack.configurations import GatewayConfiguration

__all__ = ["AwsBackend"]

# So often a token is renewed whose machine has been terminated meanwhile.
TOKENS = 5
PARALLEL_REGIONS = 8
# Where a region that cannot be asked says why.
UNLISTED = "unlisted"


class AwsBackend:
    """Machines from EC2, one for each replica; implements `Backend`.

    Args:
        settings: Of the account.
        session: Makes a boto3 session for a region; called again every few minutes.
        ssh_key: The text of the private key to log in with; None: one of this machine's own, made on first
            use.
        home: Where that key and the cache are kept.
        pause: Waits between two attempts; takes seconds.

    Example:
        >>> import boto3
        >>> backend = AwsBackend(
        ...     AwsSettings(regions=("eu-west-1",)),
        ...     lambda region: boto3.Session(region_name=region),
        ...     home=Path("/var/lib/prefect-dstack"),
        ... )
        >>> backend.name
        'aws'
    """

    def __init__(
        self,
        settings: AwsSettings,
        session: SessionFactory,
        *,
        ssh_key: SecretStr | None = None,
        home: Path,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.account = Account(settings, session, ssh_key=ssh_key, home=home, pause=pause)

    @property
    def name(self) -> str:
        """What configurations call it."""
        return BACKEND

    @property
    def runtimes(self) -> frozenset[str]:
        """Its machines run containers; see `Backend.runtimes`."""
        return frozenset({"docker"})

    @property
    def preferred(self) -> bool:
        """An account is configured to be used; see `Backend.preferred`."""
        return True

    def offers(self, requirements: Requirements, report: Report = quiet) -> Sequence[Offer]:
        """Return the offers for one replica; see `Backend.offers`.

        Args:
            requirements: Say which resources, prices, regions and kinds are acceptable.
            report: Told of prices that cannot be had.

        Returns:
            Acceptable offers, cheapest first, those of unknown price last.

        Raises:
            NoOfferError: If there is none; says why, and what comes closest.
        """
        markets = self._markets(requirements, report)
        any_gpu = self.settings.gpu_image is not None
        found = select(
            markets,
            requirements,
            zones=self.settings.availability_zones,
            any_gpu=any_gpu,
            disk_gb=self.settings.disk_gb,
        )
        if not found:
            raise NoOfferError(f"aws: {explain(markets, requirements, any_gpu=any_gpu)}")
        if not requirements.interconnected:
            return found
        networks = {
            region: network_name(self.account.network(region).vpc_id)
            for region in {offer.region for offer in found}
        }
        return [offer.model_copy(update={"network": networks[offer.region]}) for offer in found]

    def provision(
        self, offers: Sequence[Offer], stamp: Stamp, requirements: Requirements, report: Report
    ) -> Instance:
        """Get a machine for one replica; see `Backend.provision`."""
        found = self._find(stamp, report)
        if found is not None:
            report(f"aws: {stamp.name}: found {found.id}")
            return self.account.ready(found.region, found.id, report)
        tried: list[str] = []
        try:
            return self._first(offers, stamp, requirements, report, tried)
        except BaseException:
            for region in tried:
                # What cannot be removed either must not hide why there is no machine.
                with contextlib.suppress(ProvisioningError):
                    self.account.tidy(region)
            raise

    def _first(
        self,
        offers: Sequence[Offer],
        stamp: Stamp,
        requirements: Requirements,
        report: Report,
        tried: list[str],
    ) -> Instance:
        attempts = Attempts(offers)
        refused: list[str] = []
        for attempt in attempts:
            if attempt.offer.region not in tried:
                tried.append(attempt.offer.region)
            outcome = self._try(attempt, attempts, stamp, requirements, report)
            if isinstance(outcome, Instance):
                return outcome
            report(f"aws: {attempt}: {outcome}")
            refused.append(f"{attempt}: {outcome}")
        if not refused:
            raise ProvisioningError(f"aws: {stamp.name}: there is no offer to try")
        raise CapacityError(
            f"aws: {stamp.name}: no capacity in {len(refused)} attempts, the last one: {refused[-1]}"
        )

    def instances(self) -> Sequence[Instance]:
        """List the machines of replicas in every configured region; see `Backend.instances`."""
        role = tagging.tagged(tagging.ROLE, "replica")

        def listed(region: str) -> list[Instance]:
            aws = self.account.aws
            try:
                return [ec2.to_instance(aws, region, entry) for entry in ec2.find(aws, region, role)]
            except ProvisioningError as error:
                details = {UNLISTED: str(error)}
                return [Instance(backend=BACKEND, id=region, name=f"aws {region}", details=details)]

        return self._in_all_regions(listed)

    def interrupted(self) -> Sequence[Instance]:
        """List the spot machines that EC2 takes back; see `AnnouncesInterruptions.interrupted`."""
        role = tagging.tagged(tagging.ROLE, "replica")

        def listed(region: str) -> list[Instance]:
            aws = self.account.aws
            marked = marked_instances(aws, region)
            if not marked:
                return []
            found = ec2.find(aws, region, role, {"Name": "instance-id", "Values": marked})
            return [ec2.to_instance(aws, region, entry) for entry in found]

        return self._in_all_regions(listed)

    def _in_all_regions(self, listed: Callable[[str], list[Instance]]) -> list[Instance]:
        with ThreadPoolExecutor(PARALLEL_REGIONS) as pool:
            return [instance for found in pool.map(listed, self.settings.regions) for instance in found]

    def stamp(self, instance: Instance) -> Stamp | None:
        """Read for whom a machine was created; see `Backend.stamp`."""
        stamp = instance.details.get("stamp")
        return Stamp.model_validate(stamp) if stamp else None

    def terminate(self, instance: Instance) -> None:
        """Release a machine and verify that it is gone, and with the last one our security groups."""
        self.account.terminate(instance.region, instance.id)

    def machine(self, instance: Instance) -> AwsMachine:
        """Reach a machine; see `Backend.machine`."""
        if UNLISTED in instance.details:
            raise ProvisioningError(str(instance.details[UNLISTED]))
        # Our address may be another one than when it was made; if AWS cannot be asked, it may be the same.
        with contextlib.suppress(ProvisioningError):
            self.account.groups(instance.region)
        return reach(instance, self.account.key.private)

    def cleanup(self) -> None:
        """Remove what is left of us in regions without a machine of ours; see `Account.tidy`.

        Raises:
            ProvisioningError: With AWS's words, once all regions have been tried.
        """
        problems = []
        for region in self.settings.regions:
            try:
                self.account.tidy(region)
            except ProvisioningError as error:
                problems.append(str(error))
        if problems:
            raise ProvisioningError("; ".join(problems))

    def txt_records(self) -> TxtRecords:
        """Return the TXT records in Route 53; see `EditsDns.txt_records`."""
        from prefect_dstack.backends.aws.dns import TxtRecords as Route53

        return Route53(self.account.aws)

    def gateway_machines(self) -> GatewayMachines:
        """Return the machines of gateways; see `ProvidesGatewayMachines.gateway_machines`."""
        from prefect_dstack.backends.aws.gateway import AwsGateways

        return AwsGateways(self)

    def gateway_host(
        self, name: str, configuration: GatewayConfiguration, machine: Instance | None
    ) -> GatewayHost:
        """Return where a gateway of the account runs; see `HostsGateways.gateway_host`."""
        if machine is None:
            raise GatewayError(f"gateway '{name}': its machine is not known; apply its file again")
        reached = self.machine(machine)
        return GatewayHost(
            place=HostPlace(reached, name),
            attachment=Attachment(machine.address, machine.private_address, machine.network),
            public=True,
            port=80,
            tunnels=lambda: HostTunnels(reached, name),
            may_hold_tunnels=lambda: True,
        )

    def checks(self) -> Iterator[CheckResult]:
        """Try every action that AWS must allow; nothing is done there. See `ChecksItself.checks`."""
        from prefect_dstack.backends.aws.permissions import check_permissions

        remedy = "allow it: prefect-dstack doctor --iam-policy prints the least policy that suffices"
        for check in check_permissions(self.account.aws):
            passed = check.outcome != "denied"
            yield CheckResult(
                subject=f"AWS {check.action} in {check.region}",
                passed=passed,
                detail=check.outcome if passed else check.detail or "denied",
                resolution="" if passed else remedy,
            )

    def _markets(self, wanted: Requirements, report: Report) -> list[Market]:
        aws, cache = self.account.aws, self.account.cache
        check_regions(aws, self.settings.regions)
        regions = [name for name in self.settings.regions if not wanted.regions or name in wanted.regions]
        spot = (wanted.spot_policy or "on-demand") != "on-demand"

        def market(region: str) -> Market:
            return Market(
                region=region,
                types=instance_types(aws, cache, region),
                on_demand=on_demand_prices(aws, cache, region, report),
                spot=spot_prices(aws, cache, region, report) if spot else {},
            )

        if not regions:
            return [Market(region=region, types=()) for region in self.settings.regions]
        with ThreadPoolExecutor(PARALLEL_REGIONS) as pool:
            return list(pool.map(market, regions))

    def _find(self, stamp: Stamp, report: Report) -> Instance | None:
        aws = self.account.aws
        found = [
            ec2.to_instance(aws, region, entry)
            for region in self.settings.regions
            for entry in ec2.find(aws, region, *ec2.by_stamp(stamp))
        ]
        for extra in found[1:]:
            report(f"aws: {stamp.name}: {extra.id} is one too many, terminating it")
            self.terminate(extra)
        return found[0] if found else None

    def _try(
        self,
        attempt: Attempt,
        attempts: Attempts,
        stamp: Stamp,
        requirements: Requirements,
        report: Report,
    ) -> Instance | str:
        """Request one machine and wait until it answers, or raise why there is none."""
        subnet = self.account.network(attempt.offer.region).subnets.get(attempt.zone)
        if subnet is None:
            return "the zone has no usable subnet"
        report(f"aws: {stamp.name}: asking for {attempt}")
        try:
            return self._launch(attempt, subnet, stamp, requirements, report)
        except AwsError as error:
            if is_quota(error):
                attempts.give_up(attempt)
            elif not is_capacity(error):
                raise translate(error, f"RunInstances of {attempt}") from error
            return words(error)
        except CapacityError as error:
            return str(error)

    def _launch(
        self,
        attempt: Attempt,
        subnet: str,
        stamp: Stamp,
        requirements: Requirements,
        report: Report,
    ) -> Instance:
        offer = attempt.offer
        tags = {
            **dict(requirements.tags),
            **stamp.labels(":"),
            "Name": f"prefect-dstack {stamp.name}",
            tagging.GPUS: str(sum(gpu.count for gpu in offer.gpus)),
            tagging.PRICE: "" if offer.price is None else f"{offer.price:.6g}",
        }
        number = 0
        while True:
            try:
                identifier = self.account.launch(
                    offer,
                    subnet=subnet,
                    role="replica",
                    interconnected=requirements.interconnected,
                    tags=tags,
                    token=client_token(stamp, attempt, number),
                    max_price=requirements.max_price,
                    report=report,
                )
                break
            except ClientError as error:
                # The token is taken: by a machine that lives, or by one that was given back since.
                number += 1
                if code_of(error) != "IdempotentParameterMismatch" or number == TOKENS:
                    raise
            found = self._find(stamp, report)
            if found is not None:
                return self.account.ready(found.region, found.id, report)
        report(f"aws: {stamp.name}: {identifier} is starting")
        return self.account.ready(offer.region, identifier, report)
