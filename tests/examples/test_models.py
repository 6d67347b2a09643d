"""The examples that need GPUs or other people's images ask for the right machines."""

from __future__ import annotations

import pytest

from prefect_dstack.backends.base import Accelerator, Offer
from prefect_dstack.backends.matching import refusals
from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.support import check_support
from prefect_dstack.domain.workload import Requirements, requirements_of
from tests.examples.test_examples import EXAMPLES

L4 = Accelerator(name="L4", memory_gb=24, compute_capability=(8, 9))
T4 = Accelerator(name="T4", memory_gb=16, compute_capability=(7, 5))


def requirements(name: str) -> Requirements:
    configuration = load_configuration(EXAMPLES / "models" / f"{name}.dstack.yml")
    assert isinstance(configuration, ServiceConfiguration)
    check_support(configuration)
    return requirements_of(configuration)


def host(*gpus: Accelerator, cpus: float = 8, memory_gb: float = 32) -> Offer:
    return Offer(
        backend="ssh", instance_type="box", cpus=cpus, memory_gb=memory_gb, gpus=gpus, disk_gb=200, slots=1
    )


@pytest.mark.parametrize(
    ("name", "machine", "fits"),
    [
        ("vllm", host(L4), True),
        ("vllm", host(T4), False),
        ("vllm", host(), False),
        ("vllm", host(L4, memory_gb=16), False),
        ("ollama", host(T4), True),
        ("ollama", host(), False),
        ("embeddings", host(), True),
        ("embeddings", host(cpus=2), False),
    ],
)
def test_asks_for_a_machine_that_will_do(name: str, machine: Offer, fits: bool) -> None:
    assert (not refusals(requirements(name), machine)) is fits
