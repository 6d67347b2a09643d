"""This machine as a backend: offered where it will do, shared by all, never taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from prefect_dstack.backends import local
from prefect_dstack.backends.base import Accelerator
from prefect_dstack.backends.gpus import GpuDevice
from prefect_dstack.backends.local import LocalBackend
from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements, requirements_of
from prefect_dstack.errors import NoOfferError
from prefect_dstack.hosts.local_machine import LocalMachine

STAMP = Stamp(service="hello", revision=1, replica=0)
GPUS = tuple(GpuDevice(id=f"GPU-{n}", name="L4", memory_gb=22.5) for n in range(2))


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
            ({"resources": {"memory": "900TB"}}, r"will not do: memory: 921600GB asked, \d"),
            ({"resources": {"cpu": "9999.."}}, r"will not do: cpu: 9999.. asked"),
            ({"resources": {"gpu": "H100:64"}}, r"will not do: gpu: H100:64 asked"),
            ({"regions": ["eu-west-1"]}, "will not do: regions: it has no region; remove it"),
            (
                {"availability_zones": ["eu-west-1a"]},
                "availability_zones: it has no availability zone; remove it",
            ),
            ({"instance_types": ["g6.xlarge"]}, "instance_types: it has no instance type; remove it"),
            ({"fleets": ["lab"]}, "fleets: machines of the backend local are in no fleet; remove it"),
            ({"spot_policy": "spot"}, "spot_policy: it is no spot instance; remove it"),
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
        monkeypatch.setattr(local, "_gpus", lambda: GPUS)

        (offer,) = backend.offers(service(resources={"gpu": "L4:2"}))

        assert offer.gpus == (Accelerator(name="L4", memory_gb=22.5, count=2),)


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

    def test_of_a_container_has_as_many_gpus_as_were_matched(
        self, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "_gpus", lambda: GPUS)
        wanted = service(image="app", resources={"gpu": {"total_memory": "40GB.."}})

        instance = backend.provision(backend.offers(wanted), STAMP, wanted, print)
        backend.terminate(instance)

        assert instance.gpu_devices == ("GPU-0", "GPU-1")

    def test_of_each_container_has_the_gpu_that_the_fewest_use(
        self, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "_gpus", lambda: GPUS)
        wanted = service(image="app", resources={"gpu": 1})
        stamps = [STAMP.model_copy(update={"replica": number}) for number in range(4)]

        instances = [backend.provision(backend.offers(wanted), stamp, wanted, print) for stamp in stamps]
        again = backend.provision(backend.offers(wanted), stamps[1], wanted, print)
        for instance in instances:
            backend.terminate(instance)

        assert [instance.gpu_devices for instance in instances] == [
            ("GPU-0",),
            ("GPU-1",),
            ("GPU-0",),
            ("GPU-1",),
        ]
        assert again == instances[1]

    def test_of_a_process_has_none_set_aside(
        self, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "_gpus", lambda: GPUS)
        wanted = service(resources={"gpu": 1})

        assert backend.provision(backend.offers(wanted), STAMP, wanted, print).gpu_devices == ()

    def test_is_reached_without_a_connection(self, backend: LocalBackend) -> None:
        (instance,) = backend.instances()

        machine = backend.machine(instance)

        assert isinstance(machine, LocalMachine)
        assert machine.run(["cat"], stdin=b"through").stdout == b"through"
