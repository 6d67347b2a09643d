"""Whether an offer will do, by the same rules for all backends, and why not in words one can act on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.backends.base import Accelerator, Offer
from prefect_dstack.backends.matching import gpus_given, refusals, shortfalls
from prefect_dstack.configurations import Resources
from prefect_dstack.domain.workload import Requirements


def offer(*gpus: Accelerator, **fields: Any) -> Offer:
    return Offer.model_validate(
        {
            "backend": "local",
            "instance_type": "local",
            "cpus": 8,
            "memory_gb": 32,
            "disk_gb": 100,
            "architecture": "x86",
            "price": 0.0,
            "slots": 1,
            "gpus": gpus,
            **fields,
        }
    )


def lacking(there: Offer, **asked: Any) -> list[str]:
    requirements = Requirements(resources=Resources.model_validate(asked))
    return [str(refusal) for refusal in shortfalls(requirements, there)]


def refused(there: Offer, **asked: Any) -> list[str]:
    return [str(refusal) for refusal in refusals(Requirements(**asked), there)]


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
    assert lacking(offer(cpus=0, memory_gb=0)) == []


@pytest.mark.parametrize(
    ("asked", "phrase"),
    [
        ({"cpu": "9.."}, "cpu: 9.. asked, 8 there"),
        ({"memory": "40GB"}, "memory: 40GB asked, 32.0 GB there"),
        ({"disk": "1TB"}, "disk: 1024GB asked, 100.0 GB there"),
        ({"cpu": "arm:9.."}, "cpu: 9.. asked, 8 there, arm asked, x86 there"),
        ({"gpu": 1}, "gpu: 1 asked, none there"),
        ({"gpu": "..40GB"}, "gpu: ..40GB asked, none there"),
        ({"gpu": "A100:80GB:2"}, "gpu: A100:80GB:2 asked, none there"),
        ({"gpu": {"total_memory": "100GB.."}}, "gpu: 100GB.. in all asked, none there"),
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


def test_the_compute_capability_of_a_known_model_is_known_where_the_driver_does_not_say() -> None:
    gpu = Accelerator(name="A100-SXM4-80GB", memory_gb=80)

    assert lacking(offer(gpu), gpu={"compute_capability": "8.0"}) == []
    assert lacking(offer(gpu), gpu={"compute_capability": "8.6"}) != []


def test_an_unknown_compute_capability_is_not_taken_for_enough() -> None:
    assert lacking(offer(Accelerator(name="GB999", memory_gb=80)), gpu={"compute_capability": "7.0"}) != []


def test_an_unknown_architecture_is_not_taken_for_the_right_one() -> None:
    assert lacking(offer(architecture=None), cpu="arm:1") == ["cpu: arm asked, an unknown architecture there"]


@pytest.mark.parametrize(
    ("name", "memory_gb", "asked"),
    [("Tesla T4", 15.0, "16GB"), ("L4", 22.49, "24GB"), ("A10G", 22.5, "24GB..32GB"), ("L40S", 45.0, "48GB")],
)
def test_gpu_memory_is_what_the_data_sheet_says(name: str, memory_gb: float, asked: str) -> None:
    assert lacking(offer(Accelerator(name=name, memory_gb=memory_gb)), gpu={"memory": asked}) == []


def test_a_part_of_a_gpu_has_the_memory_that_it_says() -> None:
    assert lacking(offer(Accelerator(name="A10-8Q", memory_gb=8)), gpu="24GB") != []


class TestMachineOfItsOwn:
    """A replica gets all of it, so it must not be larger than was asked."""

    @pytest.mark.parametrize(
        "asked",
        [
            {"cpu": 4},
            {"cpu": "..4"},
            {"memory": "8GB..16GB"},
            {"disk": "50GB"},
            {"gpu": 1},
            {"gpu": 0},
            {"gpu": {"count": "1..", "total_memory": "80GB"}},
        ],
    )
    def test_is_refused_where_it_is_larger(self, asked: dict[str, Any]) -> None:
        (key,) = asked

        assert lacking(offer(A100), **asked) == []
        (reason,) = lacking(offer(A100, slots=None), **asked)
        assert reason.startswith(f"{key}: ")

    @pytest.mark.parametrize(
        "asked",
        [
            {"cpu": 8},
            {"cpu": "8.."},
            {"memory": "16GB..32GB"},
            {"gpu": 2},
            {"gpu": {"total_memory": "160GB"}},
        ],
    )
    def test_will_do_where_it_is_as_large(self, asked: dict[str, Any]) -> None:
        assert lacking(offer(A100, slots=None), **asked) == []

    @pytest.mark.parametrize("asked", [0, "0..1", "0..2"])
    def test_may_have_no_gpu_where_none_is_needed(self, asked: Any) -> None:
        assert lacking(offer(slots=None), gpu=asked) == []


class TestShare:
    @pytest.mark.parametrize(
        ("asked", "count"),
        [
            (0, 0),
            ("0..2", 0),
            (1, 1),
            ("1..2", 1),
            (2, 2),
            ("A100", 1),
            ({"total_memory": "100GB.."}, 2),
            ({"count": "2..", "total_memory": "80GB.."}, 2),
            ({"count": "0..", "total_memory": "60GB.."}, 1),
        ],
    )
    def test_has_as_few_gpus_as_suffice(self, asked: Any, count: int) -> None:
        requirements = Requirements(resources=Resources.model_validate({"gpu": asked}))

        given = gpus_given(requirements, offer(A100))

        assert given is not None
        assert sum(gpu.count for gpu in given) == count

    @pytest.mark.parametrize("asked", [3, {"count": 1, "total_memory": "100GB.."}])
    def test_has_none_where_they_do_not_suffice(self, asked: Any) -> None:
        requirements = Requirements(resources=Resources.model_validate({"gpu": asked}))

        assert gpus_given(requirements, offer(A100)) is None

    def test_has_the_smallest_that_suit(self) -> None:
        small = Accelerator(name="L4", memory_gb=22.5, count=4)
        requirements = Requirements(resources=Resources.model_validate({"gpu": "24GB..:2"}))

        assert gpus_given(requirements, offer(A100, small)) == (small.model_copy(update={"count": 2}),)


class TestPlacement:
    """Keys about where a machine is, what it is and what it costs."""

    LOCAL = offer()
    HOST = offer(backend="ssh", instance_type="host-1", fleet="lab")
    CLOUD = offer(
        backend="aws",
        instance_type="m5.large",
        region="eu-west-1",
        zones=("eu-west-1a", "eu-west-1b"),
        price=0.1,
        slots=None,
    )
    SPOT = CLOUD.model_copy(update={"spot": True})

    @pytest.mark.parametrize(
        ("there", "asked", "reason"),
        [
            (HOST, {"spot_policy": "spot"}, "spot_policy: hosts of fleets are no spot instances; remove it"),
            (LOCAL, {"spot_policy": "spot"}, "spot_policy: it is no spot instance; remove it"),
            (SPOT, {}, "spot_policy: on-demand asked, this is a spot instance"),
            (HOST, {"regions": ["eu-west-1"]}, "regions: hosts of fleets have no region; remove it"),
            (LOCAL, {"regions": ["eu-west-1"]}, "regions: it has no region; remove it"),
            (CLOUD, {"regions": ["us-east-1"]}, "regions: us-east-1 asked, this is eu-west-1"),
            (
                HOST,
                {"availability_zones": ["a"]},
                "availability_zones: hosts of fleets have no availability zone; remove it",
            ),
            (
                CLOUD,
                {"availability_zones": ["a", "b"]},
                "availability_zones: a, b asked, this is eu-west-1a or eu-west-1b",
            ),
            (
                HOST,
                {"instance_types": ["host-1"]},
                "instance_types: hosts of fleets have no instance type; remove it, or name fleets instead",
            ),
            (LOCAL, {"instance_types": ["x"]}, "instance_types: it has no instance type; remove it"),
            (CLOUD, {"instance_types": ["x"]}, "instance_types: x asked, this is m5.large"),
            (LOCAL, {"fleets": ["lab"]}, "fleets: machines of the backend local are in no fleet; remove it"),
            (CLOUD, {"fleets": ["lab"]}, "fleets: machines of the backend aws are in no fleet; remove it"),
            (HOST, {"fleets": ["main/other"]}, "fleets: other asked, this is lab"),
            (HOST, {"backends": ["aws"]}, "backends: aws asked, this is ssh"),
            (CLOUD, {"max_price": 0.05}, "max_price: $0.05 an hour at most asked, it costs $0.1"),
            (
                CLOUD.model_copy(update={"price": None}),
                {"max_price": 0.05},
                "max_price: $0.05 an hour at most asked, the price is unknown",
            ),
        ],
    )
    def test_is_refused_by_name(self, there: Offer, asked: dict[str, Any], reason: str) -> None:
        assert refused(there, **asked) == [reason]

    @pytest.mark.parametrize(
        ("there", "asked"),
        [
            (HOST, {"spot_policy": "auto"}),
            (HOST, {"spot_policy": "on-demand", "max_price": 0.001}),
            (HOST, {"fleets": ["main/lab"], "backends": ["aws", "ssh"]}),
            (SPOT, {"spot_policy": "spot"}),
            (SPOT, {"spot_policy": "auto", "max_price": 0.1}),
            (CLOUD, {"availability_zones": ["eu-west-1b", "x"], "regions": ["eu-west-1"]}),
            (CLOUD, {"instance_types": ["x", "m5.large"]}),
        ],
    )
    def test_is_satisfied(self, there: Offer, asked: dict[str, Any]) -> None:
        assert refused(there, **asked) == []

    def test_names_all_keys_at_once(self) -> None:
        asked = {
            "spot_policy": "spot",
            "regions": ["r"],
            "instance_types": ["i"],
            "availability_zones": ["z"],
        }

        keys = [reason.partition(":")[0] for reason in refused(self.HOST, **asked)]

        assert sorted(keys) == sorted(asked)


@given(
    cpus=st.integers(0, 200), memory=st.integers(0, 4096), disk=st.integers(0, 4096), more=st.integers(0, 64)
)
def test_more_than_what_fits_fits_too(cpus: int, memory: int, disk: int, more: int) -> None:
    asked = {"cpu": f"{cpus}..", "memory": f"{memory}GB..", "disk": f"{disk}GB.."}
    exact = offer(cpus=cpus, memory_gb=memory, disk_gb=disk)
    larger = offer(cpus=cpus + more, memory_gb=memory + more, disk_gb=disk + more)

    assert lacking(exact, **asked) == []
    assert lacking(larger, **asked) == []
