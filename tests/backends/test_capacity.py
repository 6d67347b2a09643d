from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.backends.capacity import HostCapacity
from prefect_dstack.backends.claims import Claim
from prefect_dstack.backends.gpus import GpuDevice
from prefect_dstack.backends.inspection import HostInventory
from prefect_dstack.configurations import Resources
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements


def inventory(cpus: int = 8, memory: float = 64.0, gpus: int = 0) -> HostInventory:
    devices = tuple(GpuDevice(id=f"GPU-{n}", name="A100-SXM4-80GB", memory_gb=80.0) for n in range(gpus))
    return HostInventory(
        cpus=cpus,
        memory_gb=memory,
        architecture="x86",
        disk_gb=500.0,
        free_disk_gb=300.0,
        gpus=devices,
    )


def needs(**resources: Any) -> Requirements:
    return Requirements(resources=Resources.model_validate(resources))


def fill(host: HostInventory, requirements: Requirements, **options: Any) -> list[Claim]:
    """Give shares until none is left, as deployments do one after the other."""
    claims: list[Claim] = []
    while len(claims) < 200:
        share = HostCapacity("h", host, claims, **options).claimable(requirements)
        if share is None:
            return claims
        cpus, memory, gpus = share
        stamp = Stamp(service="s", revision=1, replica=len(claims))
        claims.append(
            Claim(stamp=stamp, cpus=cpus, memory_gb=memory, gpu_devices=tuple(gpu.id for gpu in gpus))
        )
    return claims


@given(
    cpus=st.integers(1, 64),
    memory=st.integers(1, 512),
    gpus=st.integers(0, 8),
    wanted_cpus=st.integers(1, 16),
    wanted_memory=st.sampled_from(["512MB", "1GB", "7GB", "64GB"]),
    wanted_gpus=st.integers(0, 4),
    blocks=st.none() | st.integers(1, 8) | st.just("auto"),
)
def test_no_host_is_ever_overcommitted(
    cpus: int,
    memory: int,
    gpus: int,
    wanted_cpus: int,
    wanted_memory: str,
    wanted_gpus: int,
    blocks: Any,
) -> None:
    host = inventory(cpus, float(memory), gpus)
    requirements = needs(cpu=wanted_cpus, memory=wanted_memory, gpu=wanted_gpus)
    offer, lacking = HostCapacity("h", host, [], blocks).offer(requirements)
    claims = fill(host, requirements, blocks=blocks)
    assert sum(claim.cpus for claim in claims) <= cpus + 1e-3
    assert sum(claim.memory_gb for claim in claims) <= memory + 1e-3
    devices = [device for claim in claims for device in claim.gpu_devices]
    assert len(devices) == len(set(devices)) == len(claims) * wanted_gpus
    # What was announced is what there was room for.
    assert offer.slots == len(claims)
    assert bool(lacking) == (not claims)


@given(
    kinds=st.lists(
        st.sampled_from([("L4", 22.5), ("A100-SXM4-40GB", 40.0), ("A100-SXM4-80GB", 79.25)]), max_size=8
    ),
    gpu=st.sampled_from([1, "24GB..", "1..2", "A100", {"total_memory": "80GB.."}, {"memory": "..40GB"}]),
)
def test_as_many_slots_are_announced_as_gpus_of_different_kinds_allow(
    kinds: list[tuple[str, float]], gpu: Any
) -> None:
    gpus = tuple(
        GpuDevice(id=f"GPU-{n}", name=name, memory_gb=memory) for n, (name, memory) in enumerate(kinds)
    )
    host = inventory().model_copy(update={"gpus": gpus})
    offer, lacking = HostCapacity("h", host, []).offer(needs(gpu=gpu))
    claims = fill(host, needs(gpu=gpu))
    devices = [device for claim in claims for device in claim.gpu_devices]
    assert len(devices) == len(set(devices))
    assert offer.slots == len(claims)
    assert bool(lacking) == (not claims)


def test_a_replica_that_asks_for_nothing_fits_everywhere() -> None:
    offer, lacking = HostCapacity("h", inventory(1, 0.5), []).offer(needs())
    assert lacking == []
    assert offer.slots is not None
    assert offer.slots > 1000


def test_one_gpu_goes_to_one_replica() -> None:
    claims = fill(inventory(gpus=4), needs(gpu="A100:1"))
    assert [claim.gpu_devices for claim in claims] == [("GPU-0",), ("GPU-1",), ("GPU-2",), ("GPU-3",)]


def test_gpus_that_are_taken_are_not_offered() -> None:
    stamp = Stamp(service="other", revision=1, replica=0)
    capacity = HostCapacity("h", inventory(gpus=2), [Claim(stamp=stamp, gpu_devices=("GPU-0",))])
    assert [gpu.id for gpu in capacity.free_gpus] == ["GPU-1"]
    assert [str(reason) for reason in capacity.offer(needs(gpu=2))[1]] == [
        "gpu: 2 asked, A100-SXM4-80GB:80GB:1 there"
    ]


def test_the_smallest_gpu_that_suits_is_taken() -> None:
    gpus = (
        GpuDevice(id="big", name="H100", memory_gb=80.0),
        GpuDevice(id="small", name="L4", memory_gb=24.0),
    )
    share = HostCapacity("h", inventory().model_copy(update={"gpus": gpus}), []).claimable(
        needs(gpu="16GB..")
    )
    assert share is not None
    assert [gpu.id for gpu in share[2]] == ["small"]


@pytest.mark.parametrize(
    ("blocks", "gpus", "replicas"), [(1, 4, 1), (2, 4, 2), (4, 4, 4), ("auto", 4, 4), ("auto", 0, 8)]
)
def test_blocks_limit_how_many_share_a_host(blocks: Any, gpus: int, replicas: int) -> None:
    assert len(fill(inventory(gpus=gpus), needs(cpu=1), blocks=blocks)) == replicas


def test_a_large_replica_takes_several_blocks() -> None:
    assert len(fill(inventory(cpus=8), needs(cpu=3), blocks=4)) == 2


def test_what_is_missing_is_said() -> None:
    lacking = HostCapacity("h", inventory(2, 4.0), []).offer(needs(cpu="arm:4", memory="8GB"))[1]
    assert [str(reason) for reason in lacking] == [
        "cpu: 4 asked, 2 there, arm asked, x86 there",
        "memory: 8GB asked, 4.0 GB there",
    ]


def test_the_fuller_of_two_hosts_is_known() -> None:
    stamp = Stamp(service="s", revision=1, replica=0)
    half = HostCapacity("h", inventory(cpus=8, memory=64), [Claim(stamp=stamp, cpus=4, memory_gb=8)])
    assert half.used == pytest.approx(0.5)
    assert HostCapacity("h", inventory(), []).used == 0
