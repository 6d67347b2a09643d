"""Every key by which machines are chosen has an effect with every backend, or is refused by name there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from prefect_dstack.backends import local, matching, ssh
from prefect_dstack.backends.aws.catalog import InstanceType, read_instance_type
from prefect_dstack.backends.aws.offers import Market, explain, select
from prefect_dstack.backends.base import Offer
from prefect_dstack.backends.capacity import HostCapacity
from prefect_dstack.backends.fleet import Fleet, FleetHost
from prefect_dstack.backends.gpus import GpuDevice, grouped, read_gpus
from prefect_dstack.backends.inspection import HostInventory, HostReport
from prefect_dstack.backends.local import LocalBackend
from prefect_dstack.backends.matching import gpus_given, refusals
from prefect_dstack.backends.ssh import SshBackend
from prefect_dstack.configurations import Resources, load_configuration
from prefect_dstack.configurations.profile import ProfileKeys
from prefect_dstack.configurations.run import RunConfiguration
from prefect_dstack.configurations.scalars import Range
from prefect_dstack.domain.support import NEVER
from prefect_dstack.domain.workload import Requirements, requirements_of
from prefect_dstack.errors import NoOfferError

GPUS = tuple(GpuDevice(id=f"GPU-{number}", name="L4", memory_gb=22.5) for number in range(2))

# What no machine of the backends below has.
PLACEMENT: dict[str, Any] = {
    "availability_zones": ["mars-1a"],
    "backends": ["vastai"],
    "fleets": ["other"],
    "instance_types": ["z9.huge"],
    "instances": ["other-7"],
    "max_price": 0.001,
    "regions": ["mars-1"],
    "spot_policy": "spot",
}
RESOURCES: dict[str, Any] = {
    "cpu.arch": "arm",
    "cpu.count": "9999..",
    "disk.size": "900TB",
    "gpu.compute_capability": 99,
    "gpu.count": 64,
    "gpu.memory": "900GB",
    "gpu.name": "H999",
    "gpu.total_memory": "900GB..",
    "gpu.vendor": "amd",
    "memory": "900TB",
}
# Held machines cost nothing.
ALWAYS_FITS = {("local", "max_price"), ("ssh", "max_price")}
# Keys that do not choose machines: what they do is done when a replica is created.
ON_CREATION = {"name", "runtime", "tags", "interconnected"}
NOT_ABOUT_MACHINES = {
    "max_duration",
    "priority",
    "retry",
    "schedule",
    "startup_order",
    "stop_criteria",
    "stop_duration",
    "utilization_policy",
}


def requirements(**keys: Any) -> Requirements:
    loaded = load_configuration({"type": "service", "name": "s", "image": "x", "port": 80, **keys})
    assert isinstance(loaded, RunConfiguration)
    return requirements_of(loaded)


def local_offers(wanted: Requirements, monkeypatch: pytest.MonkeyPatch, home: Path) -> list[Offer]:
    monkeypatch.setattr(local, "_gpus", lambda: GPUS)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return list(LocalBackend(home).offers(wanted))


def ssh_offers(wanted: Requirements, monkeypatch: pytest.MonkeyPatch, home: Path) -> list[Offer]:
    inventory = HostInventory(
        cpus=8, memory_gb=32, architecture="x86", disk_gb=100, free_disk_gb=80, gpus=GPUS
    )
    monkeypatch.setattr(
        ssh, "check_hosts", lambda hosts: [HostReport(host=host.name, inventory=inventory) for host in hosts]
    )
    return list(SshBackend([Fleet(name="lab", hosts=(FleetHost(hostname="host-1"),))]).offers(wanted))


def aws_offers(wanted: Requirements, monkeypatch: pytest.MonkeyPatch, home: Path) -> list[Offer]:
    common: dict[str, Any] = {"cpus": 8, "memory_gb": 32, "architecture": "x86_64", "zones": ("eu-west-1a",)}
    kinds = [
        InstanceType(name="m5.large", **common),
        InstanceType(name="g6.xlarge", gpus=grouped(GPUS), **common),
    ]
    market = Market(region="eu-west-1", types=kinds, on_demand={"m5.large": 0.1, "g6.xlarge": 0.8})
    found = select([market], wanted)
    if not found:
        raise NoOfferError(explain([market], wanted))
    return found


BACKENDS = {"aws": aws_offers, "local": local_offers, "ssh": ssh_offers}


def leaves(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        inner = [
            one
            for one in get_args(field.annotation)
            if isinstance(one, type) and issubclass(one, BaseModel) and not issubclass(one, Range)
        ]
        if inner:
            yield from leaves(inner[0], f"{above}{key}.")
        else:
            yield f"{above}{key}"


def test_every_key_is_in_the_tables() -> None:
    """A new key of `Requirements` or `Resources` belongs into the tables, and `matching` has to act on it."""
    assert Requirements.model_fields.keys() == PLACEMENT.keys() | {"resources"} | ON_CREATION
    assert matching.PLACEMENT.keys() == PLACEMENT.keys()
    # Shared memory is made of a replica's own memory, in its container.
    assert set(leaves(Resources)) == RESOURCES.keys() | {"shm_size"}


@pytest.mark.parametrize("kind", ["service", "task", "dev-environment"])
def test_every_key_of_profiles_is_refused_or_in_the_requirements(kind: str) -> None:
    acted_on = ProfileKeys.model_fields.keys() - NEVER[kind].keys()

    assert acted_on - NOT_ABOUT_MACHINES == (PLACEMENT.keys() | {"tags"})


@pytest.mark.parametrize("key", sorted(PLACEMENT))
def test_every_key_reaches_the_requirements(key: str) -> None:
    assert getattr(requirements(**{key: PLACEMENT[key]}), key) != getattr(requirements(), key)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_without_any_key_there_is_an_offer(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert BACKENDS[backend](requirements(), monkeypatch, tmp_path)
    assert BACKENDS[backend](requirements(resources={"gpu": "L4:24GB:2"}), monkeypatch, tmp_path)


@pytest.mark.parametrize("key", sorted(PLACEMENT))
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_what_cannot_be_had_is_refused(
    backend: str, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = requirements(**{key: PLACEMENT[key]})
    if (backend, key) in ALWAYS_FITS:
        assert BACKENDS[backend](wanted, monkeypatch, tmp_path)
        return
    words = rf"{key}|{key.removesuffix('_policy').replace('_', ' ').removesuffix('s')}"
    with pytest.raises(NoOfferError, match=words):
        BACKENDS[backend](wanted, monkeypatch, tmp_path)


@pytest.mark.parametrize("key", sorted(RESOURCES))
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_resources_that_are_not_there_are_refused(
    backend: str, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, _, second = key.partition(".")
    resources = {first: {second: RESOURCES[key]} if second else RESOURCES[key]}
    with pytest.raises(NoOfferError, match=rf"{first}: |{first} of|the resources asked for"):
        BACKENDS[backend](requirements(resources=resources), monkeypatch, tmp_path)


def test_hosts_are_not_asked_for_what_none_of_them_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "check_hosts", lambda hosts: pytest.fail("hosts were asked"))
    hosts = tuple(FleetHost(hostname=f"host-{number}") for number in range(3))

    with pytest.raises(NoOfferError) as raised:
        SshBackend([Fleet(name="lab", hosts=hosts)]).offers(requirements(spot_policy="spot", regions=["r"]))

    assert str(raised.value) == (
        "no host will do: regions: hosts of fleets have no region; remove it; "
        "spot_policy: hosts of fleets are no spot instances; remove it"
    )


# The same GPUs: name and MiB, as the driver says it and as EC2 does.
MODELS = [
    ("Tesla T4, 15360", ("T4", 15360)),
    ("NVIDIA L4, 23034", ("L4", 22888)),
    ("NVIDIA A10G, 22731", ("A10G", 22888)),
    ("NVIDIA L40S, 46068", ("L40S", 45776)),
    ("NVIDIA A100-SXM4-40GB, 40960", ("A100", 40960)),
    ("NVIDIA A100-SXM4-80GB, 81920", ("A100", 81920)),
    ("NVIDIA H100 80GB HBM3, 81559", ("H100", 81920)),
    ("NVIDIA B200, 183359", ("B200", 183296)),
]
sizes = st.sampled_from([15, 16, 24, 40, 48, 80, 96, 160, 180, 320])


def ranges(values: st.SearchStrategy[int]) -> st.SearchStrategy[dict[str, int]]:
    return st.one_of(
        values.map(lambda value: {"min": value, "max": value}),
        values.map(lambda value: {"min": value}),
        values.map(lambda value: {"max": value}),
        st.tuples(values, values).map(lambda pair: {"min": min(pair), "max": max(pair)}),
    )


gpu_requirements = st.fixed_dictionaries(
    {},
    optional={
        "count": ranges(st.integers(0, 8)),
        "memory": ranges(sizes),
        "total_memory": ranges(sizes),
        "name": st.lists(st.sampled_from(["T4", "l4", "A10G", "l40s", "A100", "H100"]), min_size=1),
        "vendor": st.sampled_from(["nvidia", "amd"]),
        "compute_capability": st.sampled_from(["7.5", "8.0", "8.9", "9.0"]),
    },
)


@given(model=st.sampled_from(MODELS), count=st.integers(0, 8), gpu=gpu_requirements)
def test_all_backends_accept_the_same_accelerators(
    model: tuple[str, tuple[str, int]], count: int, gpu: dict[str, Any]
) -> None:
    wanted = Requirements(resources=Resources.model_validate({"gpu": gpu}))
    row, (name, mebibytes) = model
    devices = read_gpus([f"GPU-{number}, {row}" for number in range(count)], 64)
    kind = read_instance_type(
        {
            "InstanceType": "x",
            "SupportedUsageClasses": ["on-demand"],
            "SupportedVirtualizationTypes": ["hvm"],
            "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]},
            "EbsInfo": {"EncryptionSupport": "supported"},
            "VCpuInfo": {"DefaultVCpus": 4},
            "MemoryInfo": {"SizeInMiB": 65536},
            "GpuInfo": {
                "Gpus": [
                    {
                        "Name": name,
                        "Manufacturer": "NVIDIA",
                        "Count": count,
                        "MemoryInfo": {"SizeInMiB": mebibytes},
                    }
                ]
                * bool(count)
            },
        },
        ["z"],
    )
    assert kind is not None
    inventory = HostInventory(
        cpus=4, memory_gb=64, architecture="x86", disk_gb=99, free_disk_gb=99, gpus=devices
    )

    on_host = HostCapacity("h", inventory, []).claimable(wanted)
    here = Offer(
        backend="local", instance_type="local", cpus=4, memory_gb=64, gpus=grouped(devices), price=0, slots=9
    )
    in_cloud = select([Market(region="r", types=[kind])], wanted)

    assert (on_host is not None) == (refusals(wanted, here) == [])
    if on_host is not None:
        assert len(on_host[2]) == sum(gpu.count for gpu in gpus_given(wanted, here) or ())
        # A machine of one's own comes with all its GPUs.
        assert len(on_host[2]) < count or in_cloud
    if in_cloud:
        assert on_host is not None


@pytest.mark.parametrize(
    "instance", ["lab-0", "host-1", {"hostname": "host-1"}, {"fleet": "team/lab", "instance": 0}]
)
def test_an_instance_of_a_fleet_may_be_called_by_its_host_its_name_or_its_number(
    instance: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = requirements(instances=["lab-7", instance])

    assert [offer.instance_type for offer in ssh_offers(wanted, monkeypatch, tmp_path)] == ["host-1"]
