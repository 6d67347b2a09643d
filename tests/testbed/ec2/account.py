"""An AWS account of a test's own: its API, its credentials, what goes wrong in it, what is left in it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3

from prefect_dstack.backends.aws import AwsBackend, AwsSettings
from tests.testbed.ec2.server import KEY_ID

_REPOSITORY = Path(__file__).parents[3]


class Account:
    """AWS in a process of its own; a context manager.

    Args:
        hosts: Whether real hosts boot behind the instances, which needs a testbed.
    """

    def __init__(self, *, hosts: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.testbed.ec2.server", *(["--hosts"] if hosts else [])],
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._said: list[str] = []
        # Werkzeug writes a line for each request; a full pipe would stop it.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise RuntimeError("AWS did not start: " + "".join(self._said[-20:]))
        self._answer = json.loads(line)
        self.url = f"http://127.0.0.1:{self._answer['port']}"

    def __enter__(self) -> Account:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._listener.join()
        self._process.stdout.close()
        self._process.stderr.close()

    @property
    def network(self) -> str | None:
        """The network on which instances get their addresses, if hosts boot behind them."""
        network: str | None = self._answer["network"]
        return network

    def give_internet(self, *regions: str) -> None:
        """Give the default VPC of regions a way to the internet, as every real one has."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for region in regions:
            self._process.stdin.write(f"{region}\n")
            self._process.stdin.flush()
            if not self._process.stdout.readline():
                raise RuntimeError("".join(self._said[-20:]))

    def reset(self, *regions: str) -> None:
        """Empty the account, lift all faults, and give the default VPC of regions a way to the internet."""
        self.order("reset")
        urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/moto-api/reset", method="POST"), timeout=60
        ).close()
        self.give_internet(*regions)

    def order(self, what: str, **arguments: Any) -> Any:
        """Tell the process something."""
        request = urllib.request.Request(f"{self.url}/_testbed/{what}", json.dumps(arguments).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def fault(self, action: str, **rule: Any) -> None:
        """Let something go wrong; see `Fault`."""
        self.order("fault", action=action, **rule)

    def lift_faults(self) -> None:
        """Let nothing go wrong any more."""
        self.order("lift")

    def requests(self) -> dict[str, int]:
        """How often each action was asked for since the last reset."""
        counted: dict[str, int] = self.order("requests")
        return counted

    def session(self, region: str, key_id: str = KEY_ID) -> boto3.Session:
        """Make a session with the account's credentials."""
        return _session(region, key_id)

    def client(self, service: str, region: str = "us-east-1") -> Any:
        """Make a client that looks at the account from outside of what is tested."""
        return _client(service, region, self.url)

    def backend(self, home: Path, *regions: str, key_id: str = KEY_ID, **settings: Any) -> AwsBackend:
        """Make a backend on the account that keeps its files in `home` and hardly waits between attempts."""
        values = {"ssh_from": (self.network or "192.0.2.0/24",), "disk_gb": 8, **settings}
        return AwsBackend(
            AwsSettings(regions=regions or ("us-east-1",), endpoint_url=self.url, **values),
            lambda region: self.session(region, key_id),
            home=home,
            pause=self._pause,
        )

    def leftovers(self, *regions: str) -> dict[str, list[str]]:
        """What is in the account that was not there when it was empty."""
        found: dict[str, list[str]] = {}
        for region in regions or ("us-east-1",):
            ec2 = self.client("ec2", region)
            groups = ec2.describe_security_groups()["SecurityGroups"]
            instances = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
            lists = {
                "instances": [i["InstanceId"] for i in instances if i["State"]["Name"] != "terminated"],
                "volumes": [v["VolumeId"] for v in ec2.describe_volumes()["Volumes"]],
                "interfaces": [
                    n["NetworkInterfaceId"] for n in ec2.describe_network_interfaces()["NetworkInterfaces"]
                ],
                "groups": [g["GroupName"] for g in groups if g["GroupName"] != "default"],
                "addresses": [a["PublicIp"] for a in ec2.describe_addresses()["Addresses"]],
                "keys": [k["KeyName"] for k in ec2.describe_key_pairs()["KeyPairs"]],
            }
            found.update({f"{region} {kind}": names for kind, names in lists.items() if names})
        route53 = self.client("route53")
        for zone in route53.list_hosted_zones()["HostedZones"]:
            records = route53.list_resource_record_sets(HostedZoneId=zone["Id"])["ResourceRecordSets"]
            names = [f"{r['Type']} {r['Name']}" for r in records if r["Type"] not in ("NS", "SOA")]
            if names:
                found["records"] = names
        return found

    def _pause(self, seconds: float) -> None:
        # With hosts, long enough that ten who wait leave the processor to those they wait for.
        threading.Event().wait(min(seconds, 0.2 if self.network else 0.01))

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line)
            if os.environ.get("TESTBED_EC2_VERBOSE"):
                sys.stderr.write(line)


@functools.cache
def _session(region: str, key_id: str) -> boto3.Session:
    # Each session reads AWS's description of its API anew, which takes most of a second.
    return boto3.Session(aws_access_key_id=key_id, aws_secret_access_key="secret", region_name=region)


@functools.cache
def _client(service: str, region: str, url: str) -> Any:
    return _session(region, KEY_ID).client(service, endpoint_url=url)
