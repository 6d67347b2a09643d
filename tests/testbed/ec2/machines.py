"""The hook in moto: an instance that is run is a host that boots, one that is terminated is switched off."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import traceback
from collections.abc import Callable
from typing import Any

from moto.ec2.exceptions import EC2ClientError, InvalidSecurityGroupNotFoundError
from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_ip_addresses import ElasticAddressBackend
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.ec2.models.instances import Instance, InstanceBackend
from moto.ec2.models.security_groups import SecurityGroupBackend

from tests.testbed.ec2 import cloud_init, packet_filter
from tests.testbed.host import Host
from tests.testbed.images import load_image
from tests.testbed.testbed import Testbed


class Machines:
    """What is behind the instances: hosts of a testbed, or nothing.

    Args:
        testbed: Where hosts are made; None: instances are entries in moto's books, no more.
    """

    def __init__(self, testbed: Testbed | None) -> None:
        self.testbed = testbed
        self.never_boot = threading.local()
        self.logs: list[str] = []
        self.boot_seconds = 0.0
        # Spot instances that are about to be taken back.
        self.announced: set[str] = set()
        # By role: their names, and further tags for each.
        self.images: dict[str, dict[str, list[str]]] = {}
        self._hosts: dict[str, Host] = {}
        self._tokens: dict[tuple[str, str], tuple[str, Any]] = {}
        self._lock = threading.RLock()
        self._made = 0

    def install(self) -> None:
        """Put the hook in moto's place."""
        self._wrap(InstanceBackend, "run_instances", self._run)
        self._wrap(InstanceBackend, "terminate_instances", self._terminate)
        self._wrap(SecurityGroupBackend, "delete_security_group", self._delete_group)
        for name in ("authorize_security_group_ingress", "revoke_security_group_ingress"):
            self._wrap(SecurityGroupBackend, name, self._then_filter)
        self._wrap(ElasticAddressBackend, "allocate_address", self._allocate)
        self._wrap(ElasticAddressBackend, "associate_address", self._associate)

    def reset(self) -> None:
        """Switch every host off."""
        with self._lock:
            hosts, self._hosts = self._hosts, {}
            self._tokens.clear()
            self.announced.clear()
            self.logs.clear()
        if self.testbed is not None:
            for host in hosts.values():
                self.testbed.remove(host)

    def interrupt(self, identifier: str) -> None:
        """Take a spot instance back, as EC2 does."""
        instance = self._instance(identifier)
        instance.ec2_backend.terminate_instances([identifier])
        instance.state_reason.code = "Server.SpotInstanceTermination"
        instance.state_reason.message = "Server.SpotInstanceTermination: Spot instance termination"

    def spot_requests(self, region: str, codes: set[str]) -> str:
        """Answer DescribeSpotInstanceRequests, which moto does for requests of another kind only."""
        items = []
        for backend in (regions[region] for regions in ec2_backends.values() if region in regions):
            for instance in backend.all_instances():
                if instance.lifecycle != "spot" or instance.state == "terminated":
                    continue
                marked = instance.id in self.announced
                code, state = ("marked-for-termination", "closed") if marked else ("fulfilled", "active")
                if not codes or code in codes:
                    items.append(
                        f"<item><spotInstanceRequestId>sir-{instance.id[2:]}</spotInstanceRequestId>"
                        f"<state>{state}</state><status><code>{code}</code></status>"
                        f"<instanceId>{instance.id}</instanceId></item>"
                    )
        return (
            '<DescribeSpotInstanceRequestsResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
            f"<requestId>0</requestId><spotInstanceRequestSet>{''.join(items)}</spotInstanceRequestSet>"
            "</DescribeSpotInstanceRequestsResponse>"
        )

    def host(self, identifier: str) -> Host:
        """The host behind an instance."""
        return self._hosts[identifier]

    def _wrap(self, owner: type, name: str, hook: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        def hooked(backend: Any, *args: Any, **kwargs: Any) -> Any:
            return hook(original, backend, *args, **kwargs)

        setattr(owner, name, hooked)

    def _run(self, original: Callable[..., Any], backend: Any, *args: Any, **kwargs: Any) -> Any:
        token = str(kwargs.get("client_token"))
        request = hashlib.sha256(json.dumps([args, kwargs], default=str, sort_keys=True).encode()).hexdigest()
        with self._lock:
            known = self._tokens.get((backend.region_name, token))
            if known is not None and known[0] != request:
                raise EC2ClientError(
                    "IdempotentParameterMismatch",
                    "Arguments on this idempotent request are inconsistent with those of a previous one.",
                )
            if known is not None:
                return known[1]
            for card in kwargs.get("nics", ()):
                for group in card.get("Groups", ()):
                    # moto would make up a group of that name.
                    if backend.get_security_group_from_id(group) is None:
                        raise InvalidSecurityGroupNotFoundError(group)
            reservation = original(backend, *args, **kwargs)
            self._tokens[backend.region_name, token] = (request, reservation)
            for instance in reservation.instances:
                self._boot(instance)
        return reservation

    def _boot(self, instance: Instance) -> None:
        if self.testbed is None:
            return
        dead = getattr(self.never_boot, "now", False)
        self._made += 1
        host = self.testbed.host(f"ec2-{self._made}", start=False)
        self._hosts[instance.id] = host
        card = instance.nics[0]
        card.private_ip_address = host.address
        card.private_ip_addresses = [{"Primary": True, "PrivateIpAddress": host.address}]
        card.public_ip = host.address if instance.associate_public_ip or card.public_ip else None
        instance._state.name, instance._state.code = "pending", 0
        data = base64.b64decode(str(instance.user_data or "")).decode()
        threading.Thread(target=self._power_on, args=(instance, host, data, dead), daemon=True).start()
        threading.Timer(self.boot_seconds, self._run_at_last, [instance]).start()

    def _power_on(self, instance: Instance, host: Host, data: str, dead: bool) -> None:
        try:
            if not dead:
                if "GpuInfo" in INSTANCE_TYPES[instance.instance_type]:
                    cloud_init.install_container_toolkit(host)
                host.start(wait=False)
            if dead:
                return
            self.filter()
            host.wait_until_ready()
            # As if somebody had put them into the AMI: no registry is within reach.
            role = next((t["value"] for t in instance.get_tags() if t["key"] == "prefect-dstack:role"), "")
            for name, tags in self.images.get(role, {}).items():
                load_image(host, name, tags=tags)
            cloud_init.apply(host, data)
        except BaseException:
            # Switched off in the middle of its boot, or a bug: the tests can read which.
            self.logs.append(f"{instance.id}: {traceback.format_exc()}")
            raise

    def _run_at_last(self, instance: Instance) -> None:
        with self._lock:
            if instance.state == "pending":
                instance._state.name, instance._state.code = "running", 16

    def _terminate(self, original: Callable[..., Any], backend: Any, identifiers: list[str]) -> Any:
        with self._lock:
            answer = original(backend, identifiers)
            hosts = {name: self._hosts.pop(name) for name in identifiers if name in self._hosts}
            for name in hosts:
                state = self._instance(name)._state
                state.name, state.code = "shutting-down", 32
        for name, host in hosts.items():
            threading.Thread(target=self._power_off, args=(name, host), daemon=True).start()
        return answer

    def _power_off(self, identifier: str, host: Host) -> None:
        assert self.testbed is not None
        self.testbed.remove(host)
        with self._lock:
            state = self._instance(identifier)._state
            state.name, state.code = "terminated", 48
        self.filter()

    def _delete_group(self, original: Callable[..., Any], backend: Any, *args: Any, **kwargs: Any) -> Any:
        group = kwargs.get("group_id") or (args[1] if len(args) > 1 else None)
        using = [
            instance.id
            for instance in backend.all_instances()
            if instance.state != "terminated" and group in {g.id for g in _groups(instance)}
        ]
        if using:
            raise EC2ClientError("DependencyViolation", f"resource {group} has a dependent object")
        return original(backend, *args, **kwargs)

    def _then_filter(self, original: Callable[..., Any], backend: Any, *args: Any, **kwargs: Any) -> Any:
        answer = original(backend, *args, **kwargs)
        self.filter()
        return answer

    def _allocate(self, original: Callable[..., Any], backend: Any, *args: Any, **kwargs: Any) -> Any:
        if self.testbed is not None and not kwargs.get("address"):
            with self._lock:
                taken = {address.public_ip for address in backend.addresses}
                free = (str(self.testbed.network[number]) for number in range(200, 250))
                kwargs["address"] = next(address for address in free if address not in taken)
        return original(backend, *args, **kwargs)

    def _associate(self, original: Callable[..., Any], backend: Any, *args: Any, **kwargs: Any) -> Any:
        address = original(backend, *args, **kwargs)
        if self.testbed is not None and address.instance is not None:
            host = self._hosts[address.instance.id]
            # /32: what the host sends still comes from its own address.
            host.check(["ip", "address", "add", f"{address.public_ip}/32", "dev", "eth0"])
            self.filter()
        return address

    def filter(self) -> None:
        """Make every host obey its security groups as they are now."""
        with self._lock:
            members: dict[str, list[str]] = {}
            for identifier, host in self._hosts.items():
                for group in _groups(self._instance(identifier)):
                    members.setdefault(group.id, []).append(host.address)
            wanted = [
                (host, packet_filter.rules_of(_groups(self._instance(identifier)), members))
                for identifier, host in self._hosts.items()
                if host.running
            ]
        for host, rules in wanted:
            self._apply(host, rules)

    def _apply(self, host: Host, rules: list[str]) -> None:
        try:
            packet_filter.apply(host, rules)
        except RuntimeError:
            # It is being switched off.
            self.logs.append(f"{host.name}: {traceback.format_exc()}")

    @staticmethod
    def _instance(identifier: str) -> Instance:
        for regions in ec2_backends.values():
            for backend in regions.values():
                for instance in backend.all_instances():
                    if instance.id == identifier:
                        return instance
        raise KeyError(identifier)


def _groups(instance: Instance) -> list[Any]:
    cards = [group for card in instance.nics.values() for group in card._group_set]
    return [*instance.security_groups, *cards]
