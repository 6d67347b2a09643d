"""What `import prefect_dstack` offers, and what it costs."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import prefect_dstack

PACKAGE = Path(prefect_dstack.__file__).parent
EXPENSIVE = ("prefect", "docker", "paramiko", "boto3", "pydantic", "typer", "httpx")


def imported_by(code: str) -> set[str]:
    """The packages that a fresh interpreter has imported after some code."""
    report = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def modules() -> list[str]:
    names = (path.relative_to(PACKAGE.parent).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py")))
    return [".".join(name[:-1] if name[-1] == "__init__" else name) for name in names]


class TestPackage:
    def test_costs_next_to_nothing_to_import(self) -> None:
        assert not imported_by("import prefect_dstack") & set(EXPENSIVE)

    @pytest.mark.parametrize("arguments", [["--help"], ["apply", "--help"], ["version"], ["schema"]])
    def test_shows_help_without_importing_prefect(self, arguments: list[str]) -> None:
        code = (
            "import sys; from prefect_dstack.cli.main import main\n"
            f"sys.argv = ['prefect-dstack', *{arguments!r}]\n"
            "try: main()\nexcept SystemExit as end: assert not end.code"
        )

        assert not imported_by(code) & {"prefect", "docker", "paramiko", "boto3"}

    @pytest.mark.parametrize("name", prefect_dstack.__all__)
    def test_has_what_it_says(self, name: str) -> None:
        member = getattr(prefect_dstack, name)

        assert callable(member)
        assert member.__doc__
        assert getattr(prefect_dstack, name) is member

    def test_lists_its_members_sorted(self) -> None:
        assert list(prefect_dstack.__all__) == sorted(set(prefect_dstack.__all__))
        assert set(prefect_dstack.__all__) <= set(dir(prefect_dstack))

    def test_can_be_imported_from_with_a_star(self) -> None:
        namespace: dict[str, object] = {}

        exec("from prefect_dstack import *", namespace)

        assert set(prefect_dstack.__all__) <= namespace.keys()

    def test_does_not_have_anything_else(self) -> None:
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            prefect_dstack.nothing  # noqa: B018

    def test_has_an_async_twin_for_each_flow_on_services(self) -> None:
        flows = {"deploy_service", "stop_service", "rollback_service"}

        assert {f"a{name}" for name in flows} <= set(prefect_dstack.__all__)


@pytest.mark.parametrize("name", modules())
def test_every_module_can_be_imported_and_has_what_it_exports(name: str) -> None:
    if name.endswith("hosts.supervise"):
        pytest.skip("is run by path, and imports nothing of the package")
    module: ModuleType = importlib.import_module(name)

    for member in getattr(module, "__all__", ()):
        assert hasattr(module, member), f"{name}.{member}"


def test_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


USES_DOCKER = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if re.search(r"^\s*(from|import) docker\b", path.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("module", USES_DOCKER)
def test_errors_of_the_docker_sdk_are_caught_after_a_lazy_import_of_it(module: str) -> None:
    """As Prefect's integrations leave it, a first `import docker.errors` makes two of each class."""
    code = (
        "from prefect.utilities.importtools import lazy_import\n"
        "lazy_import('docker')\n"
        "from prefect_dstack.hosts.local_machine import LocalMachine\n"
        f"import {module}\n"
        "try:\n"
        "    LocalMachine().docker()\n"
        "except Exception:\n"
        "    pass\n"
        "import sys\n"
        "import docker\n"
        "docker.DockerClient\n"
        "assert docker.auth.errors is sys.modules['docker.errors']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
