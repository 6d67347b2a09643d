"""This machine as a backend: offered where it will do, shared by all, never taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from prefect_dstack.backends import local
from prefect_dstack.backends.base import Accelerator
from prefect_dstack.backends.local import LocalBackend, gpus_of
from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements, requirements_of
from prefect_dstack.errors import NoOfferError
from prefect_dstack.hosts.local_machine import LocalMachine

STAMP = Stamp(service="hello", revision=1, replica=0)


@pytest.fixture
def backend(tmp_path: Path) -> LocalBackend:
    return LocalBackend(tmp_path / "not made yet")


def service(**keys: Any) -> Requirements:
    configuration = load_configuration(
        {"type": "service", "port": 8000, "commands": ["app"], **keys}, name="hello"
    )
    assert isinstance(configuration, ServiceConfiguration)
    return requirements_of(configuration)


class TestOffers:
    def test_says_what_this_machine_has(self, backend: LocalBackend) -> None:
        (offer,) = backend.offers(service())

        assert (offer.backend, offer.price, offer.spot) == ("local", 0.0, False)
        assert offer.cpus == psutil.cpu_count()
        assert offer.memory_gb == pytest.approx(psutil.virtual_memory().total / 2**30)
        assert offer.disk_gb is not None
        assert offer.disk_gb > 0

    def test_has_room_for_many_replicas(self, backend: LocalBackend) -> None:
        (offer,) = backend.offers(service())

        assert offer.slots is not None
        assert offer.slots > 100

    @pytest.mark.parametrize(
        ("keys", "reason"),
        [
            ({"resources": {"memory": "900TB"}}, r"will not do: memory: 921600 GB asked, \d"),
            ({"resources": {"cpu": "9999.."}}, r"will not do: cpu: 9999 asked"),
            ({"resources": {"gpu": "H100:64"}}, r"will not do: gpu: H100:64 asked"),
            ({"regions": ["eu-west-1"]}, "none of the regions asked for"),
            ({"availability_zones": ["eu-west-1a"]}, "none of the availability_zones asked for"),
            ({"instance_types": ["g6.xlarge"]}, "none of the instance_types asked for"),
            ({"spot_policy": "spot"}, "not a spot instance"),
        ],
    )
    def test_refuses_what_this_machine_is_not(
        self, backend: LocalBackend, keys: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(NoOfferError, match=reason):
            backend.offers(service(**keys))

    @pytest.mark.parametrize(
        "keys", [{"spot_policy": "auto"}, {"spot_policy": "on-demand"}, {"max_price": 0.01}]
    )
    def test_suits_who_would_pay(self, backend: LocalBackend, keys: dict[str, Any]) -> None:
        assert backend.offers(service(**keys))

    @pytest.mark.parametrize(("machine", "other"), [("x86_64", "arm"), ("aarch64", "x86")])
    def test_refuses_another_architecture(
        self, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, machine: str, other: str
    ) -> None:
        monkeypatch.setattr("platform.machine", lambda: machine)
        own = {"arm": "x86", "x86": "arm"}[other]

        assert backend.offers(service(resources={"cpu": f"{own}:1"}))
        with pytest.raises(NoOfferError, match=f"cpu: {other} asked, {own} there"):
            backend.offers(service(resources={"cpu": f"{other}:1"}))

    def test_offers_its_gpus(self, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        gpus = (Accelerator(name="NVIDIA L4", memory_gb=22.5, count=2),)
        monkeypatch.setattr(local, "_gpus", lambda: gpus)

        (offer,) = backend.offers(service(resources={"gpu": "L4:2"}))

        assert offer.gpus == gpus


class TestGpus:
    def test_of_one_kind_are_counted_together(self) -> None:
        table = "NVIDIA A100-SXM4-80GB, 81920, 8.0\nNVIDIA A100-SXM4-80GB, 81920, 8.0\nTesla T4, 15360, 7.5\n"

        assert gpus_of(table) == (
            Accelerator(name="NVIDIA A100-SXM4-80GB", memory_gb=80, count=2, compute_capability=(8, 0)),
            Accelerator(name="Tesla T4", memory_gb=15, count=1, compute_capability=(7, 5)),
        )

    def test_without_memory_of_their_own_have_that_of_the_machine(self) -> None:
        (gpu,) = gpus_of("NVIDIA GB10, [N/A], [N/A]\n")

        assert gpu.memory_gb == pytest.approx(psutil.virtual_memory().total / 2**30)
        assert gpu.compute_capability is None

    @pytest.mark.parametrize("table", ["", "\n", "No devices were found\n"])
    def test_may_be_none(self, table: str) -> None:
        assert gpus_of(table) == ()


class TestInstance:
    def test_is_the_same_for_everybody(self, backend: LocalBackend) -> None:
        offers = backend.offers(service())
        told: list[str] = []

        first = backend.provision(offers, STAMP, service(), told.append)
        other = STAMP.model_copy(update={"service": "other"})

        assert backend.provision(offers, other, service(), told.append) == first
        assert list(backend.instances()) == [first]
        assert first.address == "127.0.0.1"

    def test_is_nobodys_and_stays(self, backend: LocalBackend) -> None:
        (instance,) = backend.instances()

        assert backend.stamp(instance) is None
        backend.terminate(instance)
        assert list(backend.instances()) == [instance]

    def test_is_reached_without_a_connection(self, backend: LocalBackend) -> None:
        (instance,) = backend.instances()

        machine = backend.machine(instance)

        assert isinstance(machine, LocalMachine)
        assert machine.run(["cat"], stdin=b"through").stdout == b"through"
