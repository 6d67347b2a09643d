from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.backends.inspection import HostInventory, read_inventory

SURVEY = """\
cpus 32
memory 131072000
arch aarch64
disk 524288000 104857600
addresses 10.0.0.5 172.17.0.1 fd00::5
gpu GPU-6a1b, NVIDIA A100-SXM4-80GB, 81920
gpu GPU-7c2d, NVIDIA A100-SXM4-80GB, 81920, 8.0
"""


def test_a_survey_is_read() -> None:
    inventory = read_inventory(SURVEY)
    assert inventory.cpus == 32
    assert inventory.memory_gb == pytest.approx(125.0)
    assert inventory.architecture == "arm"
    assert (inventory.disk_gb, inventory.free_disk_gb) == (500.0, 100.0)
    assert inventory.addresses == ("10.0.0.5", "172.17.0.1", "fd00::5")
    assert [(gpu.id, gpu.name, gpu.memory_gb) for gpu in inventory.gpus] == [
        ("GPU-6a1b", "A100-SXM4-80GB", 80.0),
        ("GPU-7c2d", "A100-SXM4-80GB", 80.0),
    ]


@given(st.text())
def test_what_is_no_survey_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"nothing is said about|unpack|invalid"):
        read_inventory(text)


def healthy(**changes: object) -> HostInventory:
    inventory = read_inventory(SURVEY).model_copy(update={"gpu_runtime": True, "docker_version": "27.0"})
    return inventory.model_copy(update=changes)


def test_a_healthy_host_has_no_problems() -> None:
    assert healthy().problems == ()


@pytest.mark.parametrize(
    ("changes", "remedy", "fatal"),
    [
        ({"free_disk_gb": 3.0}, "docker system prune", False),
        ({"free_disk_gb": 0.0}, "docker system prune", True),
        ({"gpu_runtime": False}, "nvidia-container-toolkit", False),
        ({"gpus": (), "broken_gpus": "Driver/library version mismatch"}, "reboot", False),
    ],
)
def test_a_problem_comes_with_its_remedy(changes: dict[str, object], remedy: str, fatal: bool) -> None:
    (problem,) = healthy(**changes).problems
    assert remedy in problem.remedy
    assert problem.fatal is fatal
