"""What an offer lacks is told in words that a person can act on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.backends.base import Accelerator, Offer
from prefect_dstack.backends.matching import shortfalls
from prefect_dstack.configurations import Resources


def offer(*gpus: Accelerator, **fields: Any) -> Offer:
    return Offer.model_validate(
        {
            "backend": "local",
            "instance_type": "local",
            "cpus": 8,
            "memory_gb": 32,
            "disk_gb": 100,
            "gpus": gpus,
            **fields,
        }
    )


def lacking(there: Offer, **asked: Any) -> list[str]:
    return shortfalls(there, Resources.model_validate(asked))


A100 = Accelerator(name="NVIDIA A100-SXM4-80GB", memory_gb=79.25, count=2, compute_capability=(8, 0))


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"cpu": 8, "memory": "32GB", "disk": "100GB"},
        {"cpu": "..4", "memory": "1GB..2GB"},
        {"cpu": "x86:2.."},
        {"shm_size": "64GB"},
        {"gpu": 0},
        {"gpu": "0..1"},
    ],
)
def test_nothing_is_lacking_where_it_is_enough(asked: dict[str, Any]) -> None:
    assert lacking(offer(), **asked) == []


def test_no_resources_fit_everywhere() -> None:
    assert shortfalls(offer(cpus=0, memory_gb=0), None) == []


@pytest.mark.parametrize(
    ("asked", "phrase"),
    [
        ({"cpu": "9.."}, "cpu: 9 asked, 8 there"),
        ({"memory": "40GB"}, "memory: 40 GB asked, 32.0 GB there"),
        ({"disk": "1TB"}, "disk: 1024 GB asked, 100.0 GB there"),
        ({"gpu": 1}, "gpu: 1 asked, none there"),
        ({"gpu": "A100:80GB:2"}, "gpu: A100:80GB:2 asked, none there"),
        ({"gpu": {"total_memory": "100GB.."}}, "gpu: 100GB in all asked, none there"),
        (
            {"gpu": {"name": "H100", "compute_capability": "9.0"}},
            "gpu: H100 of compute capability 9.0 asked, none there",
        ),
    ],
)
def test_names_what_is_asked_and_what_is_there(asked: dict[str, Any], phrase: str) -> None:
    assert lacking(offer(), **asked) == [phrase]


def test_names_everything_at_once() -> None:
    assert len(lacking(offer(), cpu=99, memory="99GB", disk="999GB", gpu=1)) == 4


def test_a_disk_of_any_size_is_large_enough() -> None:
    assert lacking(offer(disk_gb=None), disk="100TB") == []


@pytest.mark.parametrize(
    "gpu",
    [
        1,
        2,
        "A100",
        "a100:2",
        "80GB",
        "80GB:2",
        "nvidia:A100",
        "H100,A100",
        ["H100", "A100"],
        {"total_memory": "160GB"},
        {"compute_capability": "8.0"},
        {"compute_capability": 7.5},
        {"memory": "40GB..80GB"},
    ],
)
def test_a_gpu_that_suits(gpu: Any) -> None:
    assert lacking(offer(A100), gpu=gpu) == []


@pytest.mark.parametrize(
    "gpu",
    [
        3,
        "A100:3",
        "A10",
        "H100",
        "100GB",
        "..40GB",
        "amd",
        {"total_memory": "200GB"},
        {"compute_capability": "8.9"},
    ],
)
def test_a_gpu_that_does_not_suit(gpu: Any) -> None:
    (phrase,) = lacking(offer(A100), gpu=gpu)

    assert phrase.startswith("gpu: ")
    assert phrase.endswith(" asked, NVIDIA A100-SXM4-80GB:79GB:2 there")


def test_one_of_several_gpus_is_enough() -> None:
    t4 = Accelerator(name="Tesla T4", memory_gb=15)

    assert lacking(offer(t4, A100), gpu="A100") == []
    assert lacking(offer(t4, A100), gpu="T4") == []
    assert lacking(offer(t4, A100), gpu="T4:2") != []


def test_an_unknown_compute_capability_is_not_taken_for_enough() -> None:
    assert lacking(offer(Accelerator(name="A100", memory_gb=80)), gpu={"compute_capability": "7.0"}) != []


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("RTX4090", "NVIDIA GeForce RTX 4090"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("RTX6000Ada", "NVIDIA RTX 6000 Ada Generation"),
        ("L40S", "NVIDIA L40S"),
        ("H100", "NVIDIA H100 80GB HBM3"),
        ("A10G", "NVIDIA A10G"),
        ("V100", "Tesla V100-SXM2-16GB"),
        ("MI300X", "MI300X"),
    ],
)
def test_models_are_known_by_their_usual_names(asked: str, there: str) -> None:
    assert lacking(offer(Accelerator(name=there, memory_gb=24)), gpu={"name": asked}) == []


@pytest.mark.parametrize(
    ("asked", "there"),
    [("A10", "NVIDIA A100"), ("L4", "NVIDIA L40S"), ("A100", "NVIDIA A10"), ("T4", "T400")],
)
def test_models_are_not_taken_for_those_with_longer_names(asked: str, there: str) -> None:
    assert lacking(offer(Accelerator(name=there, memory_gb=24)), gpu={"name": asked}) != []


@given(
    cpus=st.integers(0, 200), memory=st.integers(0, 4096), disk=st.integers(0, 4096), more=st.integers(0, 64)
)
def test_more_than_what_fits_fits_too(cpus: int, memory: int, disk: int, more: int) -> None:
    asked = Resources.model_validate({"cpu": f"{cpus}..", "memory": f"{memory}GB..", "disk": f"{disk}GB.."})
    exact = offer(cpus=cpus, memory_gb=memory, disk_gb=disk)
    larger = offer(cpus=cpus + more, memory_gb=memory + more, disk_gb=disk + more)

    assert shortfalls(exact, asked) == []
    assert shortfalls(larger, asked) == []
