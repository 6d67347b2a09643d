"""What replicas and gateways have in common: network, images, keys; a machine started, and given back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from pydantic import SecretStr

from prefect_dstack.backends.aws import instances as ec2
from prefect_dstack.backends.aws import tags as tagging
from prefect_dstack.backends.aws.boot import console, wait_until_ready, wait_until_running
from prefect_dstack.backends.aws.cache import Cache, Memo
from prefect_dstack.backends.aws.catalog import instance_types
from prefect_dstack.backends.aws.clients import Aws, SessionFactory
from prefect_dstack.backends.aws.deployer import private_source, public_address
from prefect_dstack.backends.aws.errors import code_of
from prefect_dstack.backends.aws.firewall import Firewall, Groups
from prefect_dstack.backends.aws.images import MachineImage, find_image
from prefect_dstack.backends.aws.keys import client_key, key_pair_of
from prefect_dstack.backends.aws.machine import reach
from prefect_dstack.backends.aws.network import Network, find_network
from prefect_dstack.backends.aws.settings import AwsSettings
from prefect_dstack.backends.aws.tags import Role, filters, tagged
from prefect_dstack.backends.aws.user_data import user_data
from prefect_dstack.backends.base import Instance, Offer, Report
from prefect_dstack.errors import ProvisioningError
from prefect_dstack.hosts.keys import KeyPair, generate_key_pair

__all__ = ["Account"]

NETWORK_AGE = 300.0
IMAGE_AGE = 3600.0
TERMINATION_TIMEOUT = 600.0
GROUP_ATTEMPTS = 5
TIDY_ATTEMPTS = 12
TIDY_PAUSE = 5.0


class Account:
    """One AWS account, as far as we use it.

    Args:
        settings: Of the account.
        session: Makes a boto3 session for a region.
        ssh_key: The text of the private key to log in with; None: one of this machine's own.
        home: Where that key and the cache are kept.
        pause: Waits between two attempts; takes seconds.
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
        self.aws = Aws(settings, session, pause)
        self._home = home
        self._ssh_key = ssh_key
        self._keys: Memo[KeyPair] = Memo(float("inf"))
        self._caches: Memo[Cache] = Memo(float("inf"))
        self._networks: Memo[Network] = Memo(NETWORK_AGE)
        self._groups: Memo[Groups] = Memo(NETWORK_AGE)
        self._peers: Memo[str] = Memo(NETWORK_AGE)
        self._images: Memo[MachineImage] = Memo(IMAGE_AGE)

    @property
    def key(self) -> KeyPair:
        """The key with which we log in."""

        def make() -> KeyPair:
            if self._ssh_key is None:
                return client_key(self._home / "aws")
            try:
                return key_pair_of(self._ssh_key.get_secret_value())
            except ValueError as error:
                raise ProvisioningError(f"aws: the SSH key of the backend cannot be used: {error}") from error

        return self._keys.get("client", make)

    @property
    def cache(self) -> Cache:
        """What AWS told us: zones have other names in other accounts."""
        scope = f"{self.aws.account} {self.settings.endpoint_url or ''}"
        return self._caches.get("cache", lambda: Cache(scope, self._home / "cache" / "aws"))

    def network(self, region: str) -> Network:
        """Find the VPC and subnets of a region; see `find_network`."""
        return self._networks.get(region, lambda: find_network(self.aws, region))

    def groups(self, region: str) -> Groups:
        """Find or create the security groups of a region, with their rules."""
        return self._groups.get(
            region, lambda: self.firewall().ensure(region, self.network(region), self.sources(region))
        )

    def _groups_of(self, region: str, role: Role, *, interconnected: bool) -> list[str]:
        groups = self.groups(region)
        if role == "gateway":
            return [groups.gateway]
        if not interconnected:
            return [groups.replica]
        peer = self._peers.get(
            region, lambda: self.firewall().ensure_peer(region, self.network(region), groups)
        )
        return list(dict.fromkeys((groups.replica, peer)))

    def _forget_groups(self, region: str) -> None:
        self._groups.forget(region)
        self._peers.forget(region)

    def firewall(self) -> Firewall:
        """Return what keeps the security groups."""
        return Firewall(self.aws, self.key.fingerprint.removeprefix("SHA256:")[:12], self.settings.tags)

    def sources(self, region: str) -> tuple[str, ...]:
        """Return the networks from which we connect to machines over SSH."""
        if self.settings.ssh_from is not None:
            return self.settings.ssh_from
        if self.settings.public_ips:
            return (public_address(),)
        return (private_source(self.network(region).cidr),)

    def launch(
        self,
        offer: Offer,
        *,
        subnet: str,
        role: Role,
        tags: Mapping[str, str],
        token: str,
        report: Report,
        public: bool | None = None,
        interconnected: bool = False,
        max_price: float | None = None,
    ) -> str:
        """Request one machine.

        Args:
            offer: Which kind.
            subnet: Where.
            role: What for.
            tags: Put on it beside those of the settings.
            token: By which EC2 recognises the request.
            report: Told of lost answers.
            public: Whether it gets a public address; None: as the settings say.
            interconnected: Whether it reaches others of its kind.
            max_price: US dollars an hour, the most to pay for a spot machine.

        Returns:
            Its id, for example `i-0abc...`.

        Raises:
            ClientError: What EC2 answers.
            BotoCoreError: If there is no answer.
            ProvisioningError: With AWS's words.
        """
        region = offer.region
        kinds = {kind.name: kind for kind in instance_types(self.aws, self.cache, region)}
        if offer.instance_type not in kinds:
            raise ProvisioningError(f"aws: {region}: there is no usable instance type {offer.instance_type}")
        architecture = kinds[offer.instance_type].architecture
        gpu = bool(offer.gpus)
        image = self._images.get(
            f"{region} {architecture} {gpu}", lambda: find_image(self.aws, region, architecture, gpu=gpu)
        )
        host_key = generate_key_pair(comment="")
        # Not a secret, and whoever finds the machine must know what to expect of it.
        public_key = host_key.public.strip()
        for left in reversed(range(GROUP_ATTEMPTS)):
            parameters = ec2.launch_parameters(
                self.settings,
                offer,
                image=image,
                subnet=subnet,
                groups=self._groups_of(region, role, interconnected=interconnected),
                user_data=user_data(host_key, [self.key.public]),
                tags={
                    **self.settings.tags,
                    **tags,
                    tagging.ROLE: role,
                    tagging.HOST_KEY: public_key,
                },
                token=token,
                public=self.settings.public_ips if public is None else public,
                instance_profile=self.settings.instance_profile if role == "replica" else None,
                max_price=max_price,
            )
            try:
                return str(ec2.launch(self.aws, region, parameters, public_key, report)["InstanceId"])
            except ClientError as error:
                # Somebody has just removed the groups with the last machine that they knew of.
                if not left or code_of(error) != "InvalidGroup.NotFound":
                    raise
                self._forget_groups(region)
        raise AssertionError  # pragma: no cover

    def running(self, region: str, identifier: str) -> Instance:
        """Wait until EC2 says that a machine runs; see `wait_until_running`."""
        return wait_until_running(self.aws, region, identifier, time.monotonic() + self.settings.boot_timeout)

    def ready(
        self,
        region: str,
        identifier: str,
        report: Report,
        *,
        address: str | None = None,
        give_back: bool = True,
    ) -> Instance:
        """Wait until a machine answers.

        Args:
            region: Where.
            identifier: For example `i-0abc...`.
            report: Told of progress, and of the console's last lines if it does not answer.
            address: Where it is reached, if EC2 may still show another one.
            give_back: Whether to give it back if it does not answer.

        Returns:
            The machine.

        Raises:
            CapacityError: If EC2 took it back for want of capacity.
            ProvisioningError: If it does not answer in time.
        """
        deadline = time.monotonic() + self.settings.boot_timeout
        try:
            instance = wait_until_running(self.aws, region, identifier, deadline)
            if address is not None:
                instance = instance.model_copy(update={"address": address})
            wait_until_ready(self.aws, instance, lambda it: reach(it, self.key.private), deadline, report)
        except BaseException:
            if give_back:
                for line in console(self.aws, region, identifier):
                    report(f"aws: {identifier}: console: {line}")
                report(f"aws: {identifier} is given back")
                self.terminate(region, identifier, timeout=TERMINATION_TIMEOUT)
            raise
        return instance

    def terminate(self, region: str, identifier: str, timeout: float = TERMINATION_TIMEOUT) -> None:
        """Release a machine, and with the last one all that is ours in its region.

        Args:
            region: Where.
            identifier: For example `i-0abc...`.
            timeout: Seconds within which EC2 must confirm it.

        Raises:
            ProvisioningError: If EC2 does not confirm it.
        """
        ec2.terminate(self.aws, region, identifier, timeout)
        self.tidy(region)

    def tidy(self, region: str) -> None:
        """Remove disks, network cards, addresses and security groups of ours where no machine of ours is.

        While another one is still shutting down, nothing is done: who waits for that one will tidy.

        Args:
            region: Where.

        Raises:
            ProvisioningError: With AWS's words.
        """
        for attempt in range(1, TIDY_ATTEMPTS + 1):
            if ec2.find(self.aws, region, states=(*ec2.LIVE, "shutting-down")):
                return
            try:
                self._remove_leftovers(region)
            except ProvisioningError as error:
                # A network card outlives its machine by seconds.
                busy = error.__cause__ is not None and code_of(error.__cause__) == "DependencyViolation"
                if not busy or attempt == TIDY_ATTEMPTS:
                    raise
            else:
                return
            self.aws.pause(TIDY_PAUSE)

    def _remove_leftovers(self, region: str) -> None:
        ours = [tagged(tagging.ROLE, "replica", "gateway")]
        free = [*ours, *filters(status="available")]
        for volume in self.aws.pages(region, "ec2", "describe_volumes", "Volumes", Filters=free):
            self._gone(region, "delete_volume", VolumeId=volume["VolumeId"])
        for card in self.aws.pages(
            region, "ec2", "describe_network_interfaces", "NetworkInterfaces", Filters=free
        ):
            self._gone(region, "delete_network_interface", NetworkInterfaceId=card["NetworkInterfaceId"])
        for address in self.aws.call(region, "ec2", "describe_addresses", Filters=ours)["Addresses"]:
            self.release(region, address)
        if self.settings.security_group_id is None:
            self._forget_groups(region)
            self.firewall().delete(region)

    def release(self, region: str, address: Mapping[str, Any]) -> None:
        """Release an Elastic IP; one that is already gone is no error.

        Args:
            region: Where.
            address: As DescribeAddresses gives it.

        Raises:
            ProvisioningError: With AWS's words.
        """
        if address.get("AssociationId"):
            # The termination of its machine may have done this.
            self._gone(region, "disassociate_address", AssociationId=address["AssociationId"])
        self._gone(region, "release_address", AllocationId=address["AllocationId"])

    def _gone(self, region: str, operation: str, **parameters: Any) -> None:
        try:
            self.aws.call(region, "ec2", operation, **parameters)
        except ProvisioningError as error:
            if error.__cause__ is None or not code_of(error.__cause__).endswith(".NotFound"):
                raise
