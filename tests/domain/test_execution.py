"""When a workload without an image is a process, and when a container of the default image."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.configurations import Environment, ServiceConfiguration
from prefect_dstack.domain.execution import python_of, runtime_of
from prefect_dstack.domain.revision import written
from prefect_dstack.domain.workload import requirements_of, workload_spec

BACKENDS = st.none() | st.lists(st.sampled_from(["local", "ssh", "aws", "tinycloud"]), min_size=1).map(tuple)
FLEETS = st.none() | st.just(("lab",))


def service(**keys: Any) -> ServiceConfiguration:
    return ServiceConfiguration(port=8000, **{"commands": ("app",), **keys})


@given(backends=BACKENDS, fleets=FLEETS, image=st.none() | st.just("app"))
def test_only_what_stays_on_this_machine_and_names_no_image_is_a_process(
    backends: tuple[str, ...] | None, fleets: tuple[str, ...] | None, image: str | None
) -> None:
    decided = runtime_of(service(backends=backends, fleets=fleets, image=image))

    here = fleets is None and set(backends or ()) <= {"local"}
    assert decided == ("process" if here and image is None else "docker")


@given(backends=BACKENDS, fleets=FLEETS, image=st.none() | st.just("app"))
def test_what_was_recorded_is_looked_for_where_it_was_started(
    backends: tuple[str, ...] | None, fleets: tuple[str, ...] | None, image: str | None
) -> None:
    given_keys = {"backends": backends, "fleets": fleets, "image": image}
    configuration = service(**{key: value for key, value in given_keys.items() if value is not None})

    assert runtime_of(written(configuration)) == runtime_of(configuration)


@given(backends=BACKENDS, fleets=FLEETS)
def test_the_default_image_is_for_containers_without_one(
    backends: tuple[str, ...] | None, fleets: tuple[str, ...] | None
) -> None:
    configuration = service(backends=backends, fleets=fleets)
    spec = workload_spec(
        configuration, port=8000, commands=("app",), environment=Environment(), default_image="base:1"
    )

    assert (spec.runtime, spec.image) in [("docker", "base:1"), ("process", None)]


def test_an_image_of_the_configuration_comes_before_the_default_one() -> None:
    spec = workload_spec(
        service(image="app"), port=8000, commands=(), environment=Environment(), default_image="base:1"
    )

    assert (spec.image, spec.python) == ("app", None)


@pytest.mark.parametrize(
    ("keys", "architecture"),
    [
        ({"fleets": ["lab"]}, "x86"),
        ({"fleets": ["lab"], "resources": {"cpu": "4.."}}, "x86"),
        ({"fleets": ["lab"], "resources": {"cpu": "arm:4.."}}, "arm"),
        ({"fleets": ["lab"], "image": "app"}, None),
        ({}, None),
    ],
)
def test_the_default_image_needs_the_processor_that_it_is_for(
    keys: dict[str, Any], architecture: str | None
) -> None:
    cpu = requirements_of(service(**keys)).resources.cpu

    assert (cpu.arch if cpu else None) == architecture


@pytest.mark.parametrize(
    "command",
    [
        "pip install -r requirements.txt",
        "pip3 install x",
        "python -m pip install x",
        "uv pip install x",
        "cd app && uv run app.py",
        "uvx tool",
        "(pip3.12 install x)",
    ],
)
def test_processes_that_install_packages_get_an_environment(command: str) -> None:
    assert python_of(service(), ("echo", command)) == ""


@pytest.mark.parametrize(
    "command",
    ["python app.py", "./.venv/bin/pip install x", "uvicorn app:app", "pipenv run x", "cat pip.conf", "a-uv"],
)
def test_other_processes_use_what_the_machine_has(command: str) -> None:
    assert python_of(service(), (command,)) is None


def test_containers_of_the_default_image_have_an_environment() -> None:
    assert python_of(service(fleets=["lab"]), ("app",)) == ""
    assert python_of(service(fleets=["lab"], python="3.12"), ("app",)) == "3.12"
    assert python_of(service(fleets=["lab"], entrypoint="app"), ("app",)) is None
    assert python_of(service(fleets=["lab"], docker=True), ("app",)) is None
    assert python_of(service(image="app"), ("pip install x",)) is None
