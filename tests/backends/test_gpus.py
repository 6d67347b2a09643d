"""What is known of GPUs, from their driver and by their model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.backends.base import Accelerator
from prefect_dstack.backends.gpus import (
    GPU_SURVEY,
    GpuDevice,
    compute_capability,
    data_sheet_gb,
    grouped,
    is_model,
    picked,
    read_gpus,
)
from prefect_dstack.hosts.local_machine import LocalMachine

# Drivers before version 510 know no compute_cap.
OLD_DRIVER = """#!/bin/sh
case "$*" in
*compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2 ;;
*) echo "GPU-1, Tesla V100-SXM2-16GB, 16160" ;;
esac
"""
NEW_DRIVER = """#!/bin/sh
case "$*" in
*compute_cap*) echo "GPU-1, NVIDIA L4, 23034, 8.9" ;;
esac
"""
BROKEN_DRIVER = """#!/bin/sh
echo "Failed to initialize NVML: Driver/library version mismatch"
exit 18
"""


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("RTX4090", "NVIDIA GeForce RTX 4090"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("RTX6000Ada", "NVIDIA RTX 6000 Ada Generation"),
        ("RTX4070Ti", "NVIDIA GeForce RTX 4070 Ti"),
        ("RTXPRO6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition"),
        ("L40S", "NVIDIA L40S"),
        ("H100", "NVIDIA H100 80GB HBM3"),
        ("a10g", "NVIDIA A10G"),
        ("V100", "Tesla V100-SXM2-16GB"),
        ("MI300X", "MI300X"),
    ],
)
def test_models_are_known_by_their_usual_names(asked: str, there: str) -> None:
    assert is_model(asked, there)


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("A10", "NVIDIA A100"),
        ("L4", "NVIDIA L40S"),
        ("A100", "NVIDIA A10"),
        ("T4", "T400"),
        ("RTX6000", "NVIDIA RTX 6000 Ada Generation"),
        ("RTX4070", "NVIDIA GeForce RTX 4070 Ti SUPER"),
        ("RTX4090", "NVIDIA GeForce RTX 4090 D"),
    ],
)
def test_models_are_not_taken_for_those_with_longer_names(asked: str, there: str) -> None:
    assert not is_model(asked, there)


@pytest.mark.parametrize(
    ("name", "says", "is_called"),
    [
        ("Tesla T4", 15.0, 16),
        ("NVIDIA L4", 22.49, 24),
        ("A10G", 22888 / 1024, 24),
        ("L40S", 44.99, 48),
        ("B200", 179.1, 180),
        ("A100-SXM4-80GB", 79.25, 79.25),
        ("A10-8Q", 8, 8),
        ("an unknown one", 7, 7),
    ],
)
def test_memory_is_called_as_on_the_data_sheet(name: str, says: float, is_called: float) -> None:
    assert data_sheet_gb(name, says) == is_called


def test_the_driver_knows_better_than_the_table_what_a_gpu_can_do() -> None:
    gpu = Accelerator(name="Tesla T4", memory_gb=15)

    assert compute_capability(gpu) == (7, 5)
    assert compute_capability(gpu.model_copy(update={"compute_capability": (7, 6)})) == (7, 6)
    assert compute_capability(gpu.model_copy(update={"name": "an unknown one"})) is None


def test_what_the_driver_says_is_read() -> None:
    rows = ["GPU-1, NVIDIA A100-SXM4-80GB, 81920, 8.0", "GPU-2, Tesla V100-SXM2-16GB, 16384"]

    assert read_gpus(rows, 64) == (
        GpuDevice(id="GPU-1", name="A100-SXM4-80GB", memory_gb=80, compute_capability=(8, 0)),
        GpuDevice(id="GPU-2", name="Tesla V100-SXM2-16GB", memory_gb=16),
    )


def test_a_gpu_without_memory_of_its_own_has_that_of_the_machine() -> None:
    (gpu,) = read_gpus(["GPU-1, NVIDIA GB10, [N/A], [N/A]"], 119.7)

    assert (gpu.memory_gb, gpu.compute_capability) == (119.7, None)


@pytest.mark.parametrize("row", ["", "No devices were found"])
def test_a_row_may_be_no_gpu(row: str) -> None:
    assert read_gpus([row], 64) == ()


@given(st.lists(st.text()))
def test_any_row_is_read(rows: list[str]) -> None:
    assert len(read_gpus(rows, 64)) <= len(rows)


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (NEW_DRIVER, "gpu GPU-1, NVIDIA L4, 23034, 8.9\n"),
        (OLD_DRIVER, "gpu GPU-1, Tesla V100-SXM2-16GB, 16160\n"),
        (BROKEN_DRIVER, "broken Failed to initialize NVML: Driver/library version mismatch\n"),
    ],
)
def test_drivers_of_any_age_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, said: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(driver)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    assert LocalMachine().run(["sh", "-c", GPU_SURVEY]).stdout.decode() == said


devices = st.lists(
    st.builds(GpuDevice, id=st.uuids().map(str), name=st.sampled_from(["T4", "L4"]), memory_gb=st.just(16)),
    unique_by=lambda device: device.id,
)


@given(devices)
def test_what_is_counted_together_can_be_picked(there: list[GpuDevice]) -> None:
    assert sorted(gpu.id for gpu in picked(there, grouped(there))) == sorted(gpu.id for gpu in there)
