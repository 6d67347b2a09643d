"""One security group for replicas, one for those that reach each other, and one for gateways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from botocore.exceptions import ClientError
from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.backends.aws.clients import Aws
from prefect_dstack.backends.aws.errors import code_of, translate
from prefect_dstack.backends.aws.network import Network
from prefect_dstack.backends.aws.tags import ROLE, Role, filters, from_list, specifications, tagged
from prefect_dstack.errors import ProvisioningError

__all__ = ["REPLICA_PORT", "Firewall", "Groups", "Rule", "changes", "read_rules"]

SSH = 22

REPLICA_PORT = 20000
"""Where every replica publishes its service: each has a machine to itself, so that one rule is enough."""

EVERYBODY = ("0.0.0.0/0", "::/0")
EVERYTHING = "-1"
SERVICE = "service port"
PEER = "others of a service or a task"
GATEWAY = "gateway port"
TUNNEL = "gateway"
DEPLOYER = "deployer "


class Rule(BaseModel):
    """Who may connect to a TCP port, or to everything."""

    model_config = ConfigDict(frozen=True)

    port: int | None = Field(description="The TCP port; None: every port of every protocol.")
    source: str = Field(description="A network, or a security group.")
    purpose: str = Field(default="", description="Kept as the rule's description.")

    def permission(self) -> dict[str, Any]:
        """Return the rule as EC2 takes it."""
        entry: dict[str, Any] = {"IpProtocol": EVERYTHING}
        if self.port is not None:
            entry = {"IpProtocol": "tcp", "FromPort": self.port, "ToPort": self.port}
        if self.source.startswith("sg-"):
            entry["UserIdGroupPairs"] = [{"GroupId": self.source, "Description": self.purpose}]
        elif ":" in self.source:
            entry["Ipv6Ranges"] = [{"CidrIpv6": self.source, "Description": self.purpose}]
        else:
            entry["IpRanges"] = [{"CidrIp": self.source, "Description": self.purpose}]
        return entry


class Groups(BaseModel):
    """The security groups of a network."""

    model_config = ConfigDict(frozen=True)

    replica: str = Field(description="Of replicas.")
    gateway: str = Field(description="Of gateways.")


def read_rules(permissions: Iterable[Mapping[str, Any]]) -> tuple[set[Rule], list[dict[str, Any]]]:
    """Read the rules of a group.

    Args:
        permissions: `IpPermissions` as EC2 gives them.

    Returns:
        The rules of one TCP port, and those for all that comes from a group; and all others: never written by
        us.
    """
    rules: set[Rule] = set()
    strange: list[dict[str, Any]] = []
    sources = (("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6"), ("UserIdGroupPairs", "GroupId"))
    for permission in permissions:
        port = permission.get("FromPort")
        common = {key: permission[key] for key in ("IpProtocol", "FromPort", "ToPort") if key in permission}
        if permission.get("PrefixListIds"):
            strange.append({**common, "PrefixListIds": permission["PrefixListIds"]})
        for ranges, key in sources:
            for entry in permission.get(ranges) or ():
                if (
                    permission.get("IpProtocol") == "tcp"
                    and port is not None
                    and port == permission.get("ToPort")
                ):
                    rules.add(Rule(port=port, source=entry[key], purpose=entry.get("Description") or ""))
                elif permission.get("IpProtocol") == EVERYTHING and key == "GroupId":
                    rules.add(Rule(port=None, source=entry[key], purpose=entry.get("Description") or ""))
                else:
                    strange.append({**common, ranges: [{key: entry[key]}]})
    return rules, strange


def changes(
    present: Iterable[Rule], wanted: Iterable[Rule], keep: Callable[[Rule], bool]
) -> tuple[list[Rule], list[Rule]]:
    """Decide which rules to add and which to revoke.

    Args:
        present: What the group has.
        wanted: What it must have; who may do what counts, not the purpose.
        keep: Tells of a rule that is not wanted here whether it stays, because it is somebody else's.

    Returns:
        What to add and what to revoke.
    """
    present = list(present)
    wanted = list(wanted)
    have = {(rule.port, rule.source) for rule in present}
    need = {(rule.port, rule.source) for rule in wanted}
    add = {(rule.port, rule.source): rule for rule in wanted if (rule.port, rule.source) not in have}
    revoke = [rule for rule in present if (rule.port, rule.source) not in need and not keep(rule)]
    return list(add.values()), revoke


class Firewall:
    """The security groups of one account.

    Args:
        aws: The account.
        deployer: Who we are, so that we do not shut out others who deploy in the same account.
        tags: Put on the groups.
    """

    def __init__(self, aws: Aws, deployer: str, tags: Mapping[str, str]) -> None:
        self._aws = aws
        self._deployer = DEPLOYER + deployer
        self._tags = dict(tags)

    def ensure(
        self,
        region: str,
        network: Network,
        ssh_from: Sequence[str],
        *,
        gateway_ports: Iterable[int] = (),
        prune: bool = False,
    ) -> Groups:
        """Find or create the groups, and give them their rules.

        Args:
            region: Where.
            network: The VPC there.
            ssh_from: The networks from which we connect over SSH.
            gateway_ports: Ports of gateways that everybody must reach.
            prune: Whether these are all ports of all gateways: others are closed.

        Returns:
            The groups; those of the settings if they are set, untouched.

        Raises:
            ProvisioningError: With AWS's words.
        """
        own = self._aws.settings.security_group_id
        if own:
            return Groups(replica=own, gateway=own)
        gateway = self._group(region, network, "gateway")
        replica = self._group(region, network, "replica")
        ssh = [Rule(port=SSH, source=source, purpose=self._deployer) for source in ssh_from]
        anyone = [
            Rule(port=port, source=source, purpose=GATEWAY) for port in gateway_ports for source in EVERYBODY
        ]
        inside = gateway["GroupId"]
        through = [
            Rule(port=REPLICA_PORT, source=inside, purpose=SERVICE),
            Rule(port=SSH, source=inside, purpose=TUNNEL),
        ]

        def others(rule: Rule) -> bool:
            return rule.port == SSH and rule.purpose.startswith(DEPLOYER) and rule.purpose != self._deployer

        def opened(rule: Rule) -> bool:
            return others(rule) or (rule.purpose == GATEWAY and rule.source in EVERYBODY and not prune)

        self._reconcile(region, gateway, [*ssh, *anyone], opened)
        self._reconcile(region, replica, [*ssh, *through], others)
        return Groups(replica=replica["GroupId"], gateway=inside)

    def ensure_peer(self, region: str, network: Network, groups: Groups) -> str:
        """Find or create the group of replicas and nodes that connect to each other, and give it its rules.

        All others cannot reach each other: nobody who breaks into one service gets at the next.

        Args:
            region: Where.
            network: The VPC there.
            groups: Those that `ensure` returned.

        Returns:
            The group; the one of the settings if it is set, untouched.

        Raises:
            ProvisioningError: With AWS's words.
        """
        if self._aws.settings.security_group_id:
            return groups.replica
        group = self._group(region, network, "peer")
        identifier = str(group["GroupId"])
        # Some listen on ports of their own, which gateways must reach too.
        wanted = [
            Rule(port=None, source=source, purpose=purpose)
            for source, purpose in ((identifier, PEER), (groups.gateway, SERVICE))
        ]
        self._reconcile(region, group, wanted, lambda rule: False)
        return identifier

    def delete(self, region: str) -> None:
        """Delete the groups of a region, if there are any.

        Args:
            region: Where.

        Raises:
            ProvisioningError: With AWS's words, for example that something still uses them.
        """
        groups = self._find(region, [tagged(ROLE, "replica", "peer", "gateway")])
        # Rules of the other groups refer to the gateways' group, and hold it back.
        for group in sorted(groups, key=lambda group: from_list(group["Tags"])[ROLE], reverse=True):
            self._do(region, "delete_security_group", "InvalidGroup.NotFound", GroupId=group["GroupId"])

    def _find(self, region: str, by: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(self._aws.pages(region, "ec2", "describe_security_groups", "SecurityGroups", Filters=by))

    def _group(self, region: str, network: Network, role: Role) -> dict[str, Any]:
        by = [tagged(ROLE, role), *filters(vpc_id=network.vpc_id)]
        found = self._find(region, by)
        if found:
            return found[0]
        name = f"prefect-dstack-{role}"
        try:
            created = self._aws.once(
                region,
                "ec2",
                "create_security_group",
                GroupName=name,
                Description=f"Made and removed by prefect-dstack for its {role}s",
                VpcId=network.vpc_id,
                TagSpecifications=specifications({**self._tags, ROLE: role, "Name": name}, "security-group"),
            )
            return {"GroupId": created["GroupId"], "IpPermissions": []}
        except ClientError as error:
            # Somebody else was quicker, or an answer to us was lost.
            if code_of(error) == "InvalidGroup.Duplicate" and (found := self._find(region, by)):
                return found[0]
            if code_of(error) == "InvalidGroup.Duplicate":
                raise ProvisioningError(
                    f"aws: {region}: {network.vpc_id} has a security group {name} without our tag {ROLE}: "
                    "rename or remove it"
                ) from error
            raise translate(error, f"CreateSecurityGroup in {region}") from error

    def _reconcile(
        self, region: str, group: Mapping[str, Any], wanted: Sequence[Rule], keep: Callable[[Rule], bool]
    ) -> None:
        present, strange = read_rules(group["IpPermissions"])
        add, revoke = changes(present, wanted, keep)
        identifier = group["GroupId"]
        # One call for each: AWS refuses a whole call for one rule that somebody else has just added.
        for rule in add:
            self._do(
                region, "authorize_security_group_ingress", "InvalidPermission.Duplicate",
                GroupId=identifier, IpPermissions=[rule.permission()],
            )  # fmt: skip
        for permission in [*strange, *(rule.permission() for rule in revoke)]:
            self._do(
                region, "revoke_security_group_ingress", "InvalidPermission.NotFound",
                GroupId=identifier, IpPermissions=[permission],
            )  # fmt: skip

    def _do(self, region: str, operation: str, *fine: str, **parameters: Any) -> None:
        try:
            self._aws.call(region, "ec2", operation, **parameters)
        except ProvisioningError as error:
            if error.__cause__ is None or code_of(error.__cause__) not in fine:
                raise
