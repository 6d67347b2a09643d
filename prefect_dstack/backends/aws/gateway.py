"""Gateways on EC2: a small machine with an address that stays, and the DNS records of its domain."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from prefect_dstack.backends.aws import instances as ec2
from prefect_dstack.backends.aws import tags as tagging
from prefect_dstack.backends.aws.backend import AwsBackend
from prefect_dstack.backends.aws.catalog import instance_types
from prefect_dstack.backends.aws.clients import quiet
from prefect_dstack.backends.aws.dns import Record, create_records, delete_records
from prefect_dstack.backends.aws.errors import AwsError, is_capacity, translate, words
from prefect_dstack.backends.aws.offers import BACKEND
from prefect_dstack.backends.aws.plan import Attempts, client_token
from prefect_dstack.backends.aws.prices import on_demand_prices
from prefect_dstack.backends.base import CreatedGateway, Instance, Offer, Report
from prefect_dstack.configurations.gateway import GatewayConfiguration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import CapacityError, ConfigurationError, NotFoundError

__all__ = ["AwsGateways"]

PORTS = (80, 443)
# What DNS records may lead to.
ADDRESSES = frozenset({"PublicIp", "PublicIpAddress", "PrivateIpAddress"})
DISK_GB = 20


class AwsGateways:
    """The gateways of an account; implements `GatewayMachines`.

    Args:
        backend: The account.
    """

    def __init__(self, backend: AwsBackend) -> None:
        self._backend = backend
        self._account = backend.account
        self._aws = backend.account.aws
        self._settings = backend.settings

    def offer(self, configuration: GatewayConfiguration, report: Report = quiet) -> Offer:
        """Return what a gateway's machine would be and cost.

        Args:
            configuration: Its region and instance type.
            report: Told of prices that cannot be had.

        Returns:
            The machine.

        Raises:
            ConfigurationError: If there is no such region or instance type.
            ProvisioningError: If AWS cannot be asked.
        """
        region = self._region(configuration)
        wanted = configuration.instance_type or self._settings.gateway_instance_type
        for kind in instance_types(self._aws, self._account.cache, region):
            if kind.name == wanted:
                allowed = self._settings.availability_zones
                price = on_demand_prices(self._aws, self._account.cache, region, report).get(kind.name)
                return Offer(
                    backend=BACKEND,
                    instance_type=kind.name,
                    region=region,
                    zones=tuple(zone for zone in kind.zones if not allowed or zone in allowed),
                    cpus=kind.cpus,
                    memory_gb=kind.memory_gb,
                    disk_gb=DISK_GB,
                    price=price,
                )
        raise ConfigurationError(f"{region} has no usable instance type {wanted!r}", key="instance_type")

    def create(
        self, name: str, configuration: GatewayConfiguration, report: Report = quiet
    ) -> CreatedGateway:
        """Create a gateway's machine. Run twice with one name, it finds the first result.

        Args:
            name: Of the gateway.
            configuration: Its region, instance type, domain and tags.
            report: Told of progress.

        Returns:
            The machine, which answers, and its DNS records.

        Raises:
            CapacityError: If no zone has such a machine.
            ConflictError: If its domain leads elsewhere.
            ProvisioningError: If anything else fails; then nothing is left of the attempt.
        """
        region = self._region(configuration)
        public = configuration.public_ip and self._settings.public_ips
        existing = self._find(name)
        try:
            if existing is None:
                identifier = self._launch(name, self.offer(configuration, report), configuration, report)
            else:
                region, identifier = existing.region, existing.id
                report(f"aws: gateway {name}: found {identifier}")
            running = self._account.running(region, identifier)
            own = set() if configuration.port is None else {configuration.port}
            # Services may have opened more of a gateway that was there before.
            self.open_ports(name, own | self._ports_of(running))
            address = (
                self._give_address(name, region, identifier, configuration.domain, report) if public else None
            )
            instance = self._account.ready(region, identifier, report, address=address, give_back=False)
            self._leave_domain(running, configuration.domain, instance.address)
            records: tuple[Record, ...] = ()
            if configuration.domain is not None:
                records = create_records(self._aws, configuration.domain, instance.address)
        except BaseException:
            if existing is None:
                self.delete(name, configuration.domain)
            raise
        for record in records:
            report(f"aws: {'created' if record.created else 'please create'} the DNS record {record}")
        missing = tuple(str(record) for record in records if not record.created)
        return CreatedGateway(instance=instance, missing_records=missing)

    def delete(self, name: str, domain: str | None = None) -> None:
        """Remove a gateway's machine, address and DNS records; what is gone already is no error.

        Args:
            name: Of the gateway.
            domain: Its domain, if another than the one that it was created with.

        Raises:
            ProvisioningError: If AWS does not confirm it.
        """
        for region in self._settings.regions:
            addresses = self._addresses(region, name)
            machines = ec2.find(self._aws, region, tagging.tagged(tagging.GATEWAY, name))
            tags = [tagging.from_list(found.get("Tags")) for found in [*addresses, *machines]]
            targets = {
                str(found[key]) for found in [*addresses, *machines] for key in ADDRESSES & found.keys()
            }
            for known in sorted({domain or "", *(tag.get(tagging.DOMAIN, "") for tag in tags)} - {""}):
                for target in sorted(targets):
                    delete_records(self._aws, known, target)
            for machine in machines:
                self._account.terminate(region, machine["InstanceId"])
            for address in addresses:
                self._account.release(region, address)
            self._account.tidy(region)

    def instances(self) -> Sequence[Instance]:
        """List the machines of gateways in every configured region."""
        role = tagging.tagged(tagging.ROLE, "gateway")
        return [
            ec2.to_instance(self._aws, region, entry)
            for region in self._settings.regions
            for entry in ec2.find(self._aws, region, role)
        ]

    def names(self) -> Sequence[str]:
        """List the gateways that have a machine; see `GatewayMachines.names`."""
        return [instance.name for instance in self.instances()]

    def open_ports(self, name: str, ports: Iterable[int] = ()) -> None:
        """Open these ports of a gateway, beside 80 and 443, to everybody; close those no gateway needs.

        Args:
            name: Of the gateway.
            ports: All ports that it needs.

        Raises:
            NotFoundError: If there is no such gateway.
            ProvisioningError: With AWS's words.
        """
        instance = self._find(name)
        if instance is None:
            raise NotFoundError(f"aws: there is no gateway {name!r} in {', '.join(self._settings.regions)}")
        region = instance.region
        wanted = {*PORTS, *ports}
        tags = tagging.to_list({tagging.PORTS: " ".join(map(str, sorted(wanted)))})
        self._aws.call(region, "ec2", "create_tags", Resources=[instance.id], Tags=tags)
        for entry in ec2.find(self._aws, region, tagging.tagged(tagging.ROLE, "gateway")):
            # EC2 may still show this one's old tag.
            if entry["InstanceId"] != instance.id:
                wanted |= self._ports_of(ec2.to_instance(self._aws, region, entry))
        self._account.firewall().ensure(
            region,
            self._account.network(region),
            self._account.sources(region),
            gateway_ports=sorted(wanted),
            prune=True,
        )

    @staticmethod
    def _ports_of(instance: Instance) -> set[int]:
        return {int(port) for port in str(instance.details.get("ports", "")).split() if port.isdecimal()}

    def _find(self, name: str) -> Instance | None:
        for region in self._settings.regions:
            for entry in ec2.find(self._aws, region, tagging.tagged(tagging.GATEWAY, name)):
                return ec2.to_instance(self._aws, region, entry)
        return None

    def _region(self, configuration: GatewayConfiguration) -> str:
        region = configuration.region or self._settings.regions[0]
        if region not in self._settings.regions:
            raise ConfigurationError(
                f"{region!r} is not one of the AWS backend's regions: {', '.join(self._settings.regions)}",
                key="region",
            )
        return region

    def _launch(self, name: str, offer: Offer, configuration: GatewayConfiguration, report: Report) -> str:
        network = self._account.network(offer.region)
        # One attempt at a gateway's machine has nothing in common with the next: it is found by its tag.
        stamp = Stamp(service=f"gateway/{name}", revision=1, replica=0, flow_run=str(uuid.uuid4()))
        tags = {
            **dict(configuration.tags or {}),
            **self._tags(name, configuration.domain),
            tagging.PRICE: "" if offer.price is None else f"{offer.price:.6g}",
        }
        refused = "no zone with a usable subnet has one"
        for attempt in Attempts([offer]):
            subnet = network.subnets.get(attempt.zone)
            if subnet is None:
                continue
            report(f"aws: gateway {name}: asking for {attempt}")
            try:
                return self._account.launch(
                    offer,
                    subnet=subnet,
                    role="gateway",
                    tags=tags,
                    token=client_token(stamp, attempt, 0),
                    public=configuration.public_ip and self._settings.public_ips,
                    report=report,
                )
            except AwsError as error:
                if not is_capacity(error):
                    raise translate(error, f"RunInstances of {attempt}") from error
                refused = f"{attempt}: {words(error)}"
            report(f"aws: {refused}")
        raise CapacityError(f"aws: gateway {name}: {refused}")

    def _tags(self, name: str, domain: str | None) -> dict[str, str]:
        return {
            tagging.GATEWAY: name,
            tagging.DOMAIN: domain or "",
            "Name": f"prefect-dstack gateway {name}",
        }

    def _leave_domain(self, machine: Instance, domain: str | None, address: str) -> None:
        """Remove the records of the domain that a gateway had before, if that was another one."""
        before = str(machine.details.get("domain") or "")
        if before == (domain or ""):
            return
        if before:
            delete_records(self._aws, before, address)
        tags = tagging.to_list({tagging.DOMAIN: domain or ""})
        self._aws.call(machine.region, "ec2", "create_tags", Resources=[machine.id], Tags=tags)

    def _addresses(self, region: str, name: str) -> list[dict[str, Any]]:
        by = [tagging.tagged(tagging.GATEWAY, name)]
        answer = self._aws.call(region, "ec2", "describe_addresses", Filters=by)
        return [dict(address) for address in answer["Addresses"]]

    def _give_address(
        self, name: str, region: str, identifier: str, domain: str | None, report: Report
    ) -> str:
        found = self._addresses(region, name)
        if found:
            address = found[0]
        else:
            tags = {**self._settings.tags, **self._tags(name, domain), tagging.ROLE: "gateway"}
            try:
                address = self._aws.once(
                    region,
                    "ec2",
                    "allocate_address",
                    Domain="vpc",
                    TagSpecifications=tagging.specifications(tags, "elastic-ip"),
                )
            except AwsError as error:
                raise translate(error, f"AllocateAddress in {region}") from error
        report(f"aws: gateway {name}: its address is {address['PublicIp']}")
        self._aws.call(
            region,
            "ec2",
            "associate_address",
            AllocationId=address["AllocationId"],
            InstanceId=identifier,
            AllowReassociation=True,
        )
        return str(address["PublicIp"])
