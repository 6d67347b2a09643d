"""A machine of EC2, reached over SSH with the host key that it was given."""

from __future__ import annotations

from pydantic import SecretStr

from prefect_dstack.backends.aws.firewall import REPLICA_PORT
from prefect_dstack.backends.base import Instance
from prefect_dstack.errors import HostKeyError, HostNotReadyError, HostUnreachableError
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.remote_ports import listening_ports
from prefect_dstack.hosts.ssh_machine import SshMachine

__all__ = ["AwsMachine", "reach"]


class AwsMachine(SshMachine):
    """A machine with one replica, on the one port that the security group lets gateways reach."""

    def free_port(self) -> int:
        """Return the port of replicas; see `Machine.free_port`.

        Raises:
            HostNotReadyError: If something listens on it already.
        """
        table = self.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"], timeout=30, idempotent=True).stdout
        if REPLICA_PORT in listening_ports(table.decode(errors="replace")):
            raise HostNotReadyError(f"{self.name}: something listens on port {REPLICA_PORT} already")
        return REPLICA_PORT


def reach(instance: Instance, key: SecretStr) -> AwsMachine:
    """Find the way to a machine.

    Args:
        instance: The machine.
        key: The text of the private key that may log in.

    Returns:
        The machine, connected on first use.

    Raises:
        HostKeyError: If we do not know its host key.
        HostUnreachableError: If it has no address.
    """
    host_key = str(instance.details.get("host_key") or "")
    if not host_key:
        raise HostKeyError(
            f"{instance.name} ({instance.id}): its tag prefect-dstack:host-key is gone: terminate it and "
            "deploy again"
        )
    if not instance.address:
        raise HostUnreachableError(f"{instance.name} ({instance.id}): it has no address, it may have ended")
    access = SshAccess(
        hostname=instance.address,
        port=22,
        user=str(instance.details.get("user") or "ubuntu"),
        ssh_key=key,
        host_key=host_key,
    )
    return AwsMachine(
        access, name=instance.name, publish_address=instance.private_address or instance.address
    )
