"""What is published has what it needs, nothing else, and works in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.home import Home
from tests.prefect_server import PrefectServer

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
VERSION = version("prefect-dstack")
# Files of the package that are no modules, and the one module that is copied to other machines as it is.
DATA = {
    "prefect_dstack/py.typed",
    "prefect_dstack/gateways/haproxy.cfg.j2",
    "prefect_dstack/gateways/body_limit.lua",
    "prefect_dstack/gateways/hold.lua",
    "prefect_dstack/gateways/paths.lua",
    "prefect_dstack/hosts/supervise.py",
}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Built:
    """What `make dist` makes.

    Attributes:
        wheel: The wheel.
        sdist: The source distribution.
        cache: Where uv keeps what it has downloaded.
    """

    wheel: Path
    sdist: Path
    cache: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    cache = subprocess.check_output([UV, "cache", "dir"], text=True).strip()
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run(["make", "dist", f"DIST={directory}"], cwd=ROOT, check=True, timeout=200)
    (wheel,) = directory.glob("*.whl")
    (sdist,) = directory.glob("*.tar.gz")
    return Built(wheel, sdist, cache)


def tracked(*directories: str) -> set[str]:
    """The files of the repository in some directories."""
    listed = subprocess.check_output(["git", "ls-files", *directories], cwd=ROOT, text=True)
    return set(listed.splitlines())


def test_the_wheel_has_the_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = Parser().parsestr(wheel.read(f"prefect_dstack-{VERSION}.dist-info/METADATA").decode())
        entry_points = wheel.read(f"prefect_dstack-{VERSION}.dist-info/entry_points.txt").decode()

    assert names >= DATA
    assert names == {name for name in names if name.startswith("prefect_dstack/")}
    assert not {name for name in names if "__pycache__" in name}
    assert (metadata["Name"], metadata["License-Expression"]) == ("prefect-dstack", "Apache-2.0")
    assert "# prefect-dstack" in metadata.get_payload()
    assert "prefect-dstack = prefect_dstack.cli.main:main" in entry_points


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="there is no repository to compare with")
def test_the_sdist_has_what_the_repository_has(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}

    assert names >= tracked("prefect_dstack", "tests", "docs", "examples", "flows", "benchmarks", "deploy")
    assert names >= {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml", "uv.lock"}
    assert not {name for name in names if "__pycache__" in name or name.startswith((".venv", "dist"))}


@pytest.mark.integration
@pytest.mark.timeout(600)
@pytest.mark.parametrize("python", [f"{sys.version_info.major}.{sys.version_info.minor}", "3.13"])
def test_the_wheel_deploys_from_an_environment_of_its_own(
    built: Built, home: Home, prefect_server: PrefectServer, tmp_path: Path, python: str
) -> None:
    environment = {**os.environ, "UV_CACHE_DIR": built.cache, "UV_PYTHON_DOWNLOADS": "never"}
    found = subprocess.run([UV, "python", "find", python], env=environment, capture_output=True, check=False)
    if found.returncode != 0:
        pytest.skip(f"Python {python} is not installed here")
    venv = home.path / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", python, venv], env=environment, check=True)
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--python", venv / "bin" / "python", built.wheel],
        env=environment,
        check=True,
        timeout=400,
    )
    shutil.copytree(ROOT / "examples", tmp_path / "examples")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [venv / "bin" / "prefect-dstack", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout

    assert run("--version") == f"{VERSION}\n"
    assert "hello@1 serves at http://127.0.0.1:" in run("apply", "examples/hello.dstack.yml", "-y")
    assert '"revision": "1"' in run("call", "hello")
    assert run("stop", "hello", "-y") == "hello is stopped\n"
    run("delete", "hello", "-y")
