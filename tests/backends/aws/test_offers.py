from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.backends.aws.catalog import InstanceType, read_instance_type
from prefect_dstack.backends.aws.offers import Market, explain, rank, select
from prefect_dstack.backends.base import Accelerator, Offer
from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.domain.workload import Requirements, requirements_of

A10G = Accelerator(name="A10G", memory_gb=24, vendor="nvidia")
ZONES = ("eu-west-1a", "eu-west-1b")


def kind(name: str, cpus: int = 4, memory: float = 16, *gpus: Accelerator, **rest: Any) -> InstanceType:
    values = {"architecture": "x86_64", "spot": True, "zones": ZONES, **rest}
    return InstanceType(name=name, cpus=cpus, memory_gb=memory, gpus=gpus, **values)


MARKET = Market(
    region="eu-west-1",
    types=[
        kind("t3.nano", 2, 0.5),
        kind("m5.large", 2, 8),
        kind("m5.xlarge", 4, 16),
        kind("m7g.xlarge", 4, 16, architecture="arm64"),
        kind("g5.xlarge", 4, 16, A10G),
        kind("g5.12xlarge", 48, 192, A10G.model_copy(update={"count": 4})),
        kind("p3.2xlarge", 8, 61, Accelerator(name="V100", memory_gb=16)),
        kind("c9.xlarge", 4, 8, spot=False),
    ],
    on_demand={
        "t3.nano": 0.005,
        "m5.large": 0.1,
        "m5.xlarge": 0.2,
        "m7g.xlarge": 0.16,
        "g5.xlarge": 1.0,
        "p3.2xlarge": 3,
    },
    spot={"g5.xlarge": {"eu-west-1a": 0.5, "eu-west-1b": 0.4}, "m5.xlarge": {"eu-west-1b": 0.05}},
)


def wanted(**keys: Any) -> Requirements:
    return requirements_of(ServiceConfiguration(port=8000, image="app", **keys))


def names(**keys: Any) -> list[str]:
    return [offer.instance_type for offer in select([MARKET], wanted(**keys))]


def test_nothing_asked_gives_x86_machines_without_gpus_cheapest_first_unknown_prices_last() -> None:
    offers = select([MARKET], wanted())
    assert [(o.instance_type, o.price) for o in offers] == [
        ("m5.large", 0.1),
        ("m5.xlarge", 0.2),
        ("c9.xlarge", None),
    ]
    assert not any(offer.spot for offer in offers)


def test_the_memory_on_a_gpus_data_sheet_is_what_counts() -> None:
    entry = {
        "InstanceType": "g5.xlarge",
        "SupportedUsageClasses": ["on-demand", "spot"],
        "SupportedVirtualizationTypes": ["hvm"],
        "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]},
        "EbsInfo": {"EncryptionSupport": "supported"},
        "VCpuInfo": {"DefaultVCpus": 4},
        "MemoryInfo": {"SizeInMiB": 16384},
        "GpuInfo": {
            "Gpus": [
                {"Name": "A10G", "Manufacturer": "NVIDIA", "Count": 1, "MemoryInfo": {"SizeInMiB": 22888}}
            ]
        },
    }
    read = read_instance_type(entry, ["eu-west-1a"])
    assert read is not None
    assert read.gpus == (A10G,)
    assert select([Market(region="eu-west-1", types=[read])], wanted(resources={"gpu": "24GB"}))


@pytest.mark.parametrize(
    "change",
    [
        {"SupportedUsageClasses": ["capacity-block"]},
        {"SupportedVirtualizationTypes": ["paravirtual"]},
        {"ProcessorInfo": {"SupportedArchitectures": ["x86_64_mac"]}},
        {"EbsInfo": {"EncryptionSupport": "unsupported"}},
        {
            "GpuInfo": {
                "Gpus": [{"Name": "L4", "Manufacturer": "NVIDIA", "Count": 0, "GpuPartitionSize": 0.125}]
            }
        },
    ],
)
def test_types_that_nothing_of_ours_boots_on_are_left_out(change: dict[str, Any]) -> None:
    entry = {
        "InstanceType": "m5.large",
        "SupportedUsageClasses": ["on-demand"],
        "SupportedVirtualizationTypes": ["hvm"],
        "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]},
        "EbsInfo": {"EncryptionSupport": "supported"},
        "VCpuInfo": {"DefaultVCpus": 2},
        "MemoryInfo": {"SizeInMiB": 8192},
    }
    assert read_instance_type(entry, ["eu-west-1a"]) is not None
    assert read_instance_type({**entry, **change}, ["eu-west-1a"]) is None
    assert read_instance_type(entry, []) is None


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"cpu": "4"}, ["m5.xlarge", "c9.xlarge"]),
        ({"cpu": "arm:4"}, ["m7g.xlarge"]),
        ({"memory": "10GB.."}, ["m5.xlarge"]),
        ({"memory": "0.5GB"}, ["t3.nano"]),
        ({"gpu": "24GB"}, ["g5.xlarge", "g5.12xlarge"]),
        ({"gpu": "24GB:1"}, ["g5.xlarge"]),
        ({"gpu": "a10g:4"}, ["g5.12xlarge"]),
        ({"gpu": {"total_memory": "48GB.."}}, ["g5.12xlarge"]),
        ({"gpu": {"vendor": "amd"}}, []),
        ({"gpu": {"compute_capability": "9.0"}}, []),
        ({"gpu": {"compute_capability": "8.6"}}, ["g5.xlarge", "g5.12xlarge"]),
        ({"gpu": 0}, ["m5.large", "m5.xlarge", "c9.xlarge"]),
        ({"gpu": "V100"}, []),
        ({"cpu": "1000"}, []),
    ],
)
def test_resources_choose_types(resources: dict[str, Any], expected: list[str]) -> None:
    assert names(resources=resources) == expected


def test_a_gpu_without_a_driver_in_the_standard_image_needs_an_image_of_ones_own() -> None:
    asked = wanted(resources={"gpu": "V100"})
    assert [o.instance_type for o in select([MARKET], asked, any_gpu=True)] == ["p3.2xlarge"]


def test_a_type_that_is_named_may_be_arm_or_have_gpus() -> None:
    assert names(instance_types=["m7g.xlarge", "g5.xlarge"]) == ["m7g.xlarge", "g5.xlarge"]


def test_spot_is_tried_in_the_cheapest_zone_first() -> None:
    (offer,) = select([MARKET], wanted(resources={"gpu": "24GB:1"}, spot_policy="spot"))
    assert offer.spot
    assert offer.price == 0.4
    assert offer.zones == ("eu-west-1b", "eu-west-1a")


def test_auto_goes_from_spot_to_on_demand() -> None:
    offers = select([MARKET], wanted(resources={"gpu": "24GB:1"}, spot_policy="auto"))
    assert [(o.spot, o.price) for o in offers] == [(True, 0.4), (False, 1.0)]


def test_zones_of_the_settings_and_of_the_configuration_both_count() -> None:
    asked = wanted(instance_types=["m5.large"], availability_zones=["eu-west-1b", "eu-west-1c"])
    assert [o.zones for o in select([MARKET], asked)] == [("eu-west-1b",)]
    assert select([MARKET], asked, zones=["eu-west-1a"]) == []


def test_max_price_leaves_out_what_costs_more_and_what_nobody_knows_the_price_of() -> None:
    assert names(max_price=0.1) == ["m5.large"]


@pytest.mark.parametrize(
    ("disk", "expected"), [(None, 100), ("50GB", 50), ("200GB..", 200), ("..60GB", 60), ("..900GB", 100)]
)
def test_the_disk_is_as_large_as_asked(disk: str | None, expected: float) -> None:
    resources = {"disk": disk} if disk else {}
    assert {o.disk_gb for o in select([MARKET], wanted(resources=resources))} == {expected}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"regions": ["us-east-1"]}, "none of the regions asked for (us-east-1)"),
        ({"instance_types": ["z9.huge"]}, "there is no usable instance type z9.huge"),
        ({"instance_types": ["m5.larg"]}, "no usable instance type m5.larg; did you mean m5.large?"),
        ({"resources": {"disk": "70TB"}}, "a disk of 71,680 GB is more than EBS has, which is 65,536 GB"),
        ({"resources": {"cpu": 1000}}, "none of 8 instance types has the resources"),
        (
            {"max_price": 0.01},
            "m5.large, costs $0.1 an hour, more than the max_price of $0.01; the prices of 1 are",
        ),
        (
            {"instance_types": ["c9.xlarge"], "max_price": 1},
            "the prices of all 1 matching offers are unknown",
        ),
        (
            {"availability_zones": ["eu-west-1z"]},
            "there is no availability zone eu-west-1z; there are: eu-west-1a",
        ),
    ],
)
def test_no_offer_is_explained(keys: dict[str, Any], expected: str) -> None:
    assert select([MARKET], wanted(**keys)) == []
    assert expected in explain([MARKET], wanted(**keys))


prices = st.one_of(st.none(), st.floats(0.001, 100))
offers = st.builds(
    Offer,
    backend=st.just("aws"),
    instance_type=st.sampled_from(["a", "b", "c"]),
    region=st.sampled_from(["r1", "r2", "r3"]),
    cpus=st.integers(1, 8),
    memory_gb=st.integers(1, 8),
    price=prices,
    spot=st.booleans(),
)


@given(st.lists(offers))
def test_ranking_keeps_every_offer_and_puts_the_cheapest_first(given_offers: list[Offer]) -> None:
    ranked = rank(given_offers, ["r1", "r2"])
    assert sorted(map(repr, ranked)) == sorted(map(repr, given_offers))
    known = [offer.price for offer in ranked if offer.price is not None]
    assert known == sorted(known)
    assert [offer.price is None for offer in ranked] == sorted(offer.price is None for offer in ranked)


@given(
    st.lists(
        st.builds(
            kind,
            st.sampled_from(["a", "b", "c", "d"]),
            st.integers(1, 64),
            st.integers(1, 256),
            zones=st.lists(st.sampled_from(["z1", "z2", "z3"]), min_size=1, unique=True).map(tuple),
        ),
        unique_by=lambda it: it.name,
    ),
    st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.floats(0.01, 10)),
    st.integers(1, 32),
    st.one_of(st.none(), st.floats(0.01, 10)),
    st.sampled_from(["spot", "on-demand", "auto"]),
)
def test_every_offer_satisfies_what_was_asked(
    types: list[InstanceType], on_demand: dict[str, float], cpus: int, max_price: float | None, policy: str
) -> None:
    asked = wanted(resources={"cpu": f"{cpus}.."}, max_price=max_price, spot_policy=policy)
    for offer in select([Market("r", types, on_demand)], asked, zones=["z1", "z2"]):
        assert offer.cpus >= cpus
        assert offer.zones
        assert set(offer.zones) <= {"z1", "z2"}
        assert max_price is None or (offer.price is not None and offer.price <= max_price)
        assert policy == "auto" or offer.spot == (policy == "spot")
