"""What the pages tell their readers to type is typed, in files and a shell as they would."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment

from prefect_dstack.domain.record import Endpoint
from prefect_dstack.store.records import load_record
from tests.bundles.repositories import git, repository, serving
from tests.flows.conftest import EXAMPLES, forget
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("home", "prefect_server")]

ROOT = EXAMPLES.parent
DOCS = ROOT / "docs"
BIN = Path(sys.executable).parent


def blocks(page: Path, language: str) -> list[str]:
    """The code of a page, in its order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def snippet(page: Path, part: str) -> str:
    """The one snippet of Python that has this in it."""
    (found,) = [text for text in blocks(page, "python") if part in text]
    return found


@contextlib.contextmanager
def program(directory: Path, text: str, deployment: str) -> Iterator[None]:
    """Run a file that serves a deployment, until it is there; end it as Ctrl-C does."""
    (directory / "serving.py").write_text(text)
    process = subprocess.Popen(
        [sys.executable, "serving.py"],
        cwd=directory,
        env={**os.environ, "PREFECT_RUNNER_POLL_FREQUENCY": "1"},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: exists(deployment), 60, f"{deployment} is served", interval=0.3)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()


def exists(deployment: str) -> bool:
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            return client.read_deployment_by_name(deployment) is not None
        except ObjectNotFound:
            return False


@pytest.fixture
def answer(tmp_path: Path) -> Iterator[Path]:
    """A directory with the application of the tutorial and a file for it; what was deployed is stopped."""
    from prefect_dstack import stop_service
    from prefect_dstack.errors import NotFoundError

    # The home directory is beside it: what Prefect writes there is no part of the service.
    directory = tmp_path / "answer"
    directory.mkdir()
    (directory / "app.py").write_text(blocks(DOCS / "tutorial.md", "python")[0])
    (written,) = blocks(DOCS / "tutorial.md", "yaml")
    (directory / "answer.dstack.yml").write_text(written)
    (directory / "serve.dstack.yml").write_text(written.replace("name: answer", "name: serve"))
    yield directory
    for name in ("answer", "serve"):
        with contextlib.suppress(NotFoundError):
            stop_service(name)


@pytest.mark.timeout(200)
def test_a_service_is_redeployed_by_the_served_flow(answer: Path) -> None:
    text = snippet(DOCS / "how-to" / "schedules.md", "deploy_service.serve(")
    with program(answer, text, "deploy-service/weekly"):
        run: Any = run_deployment("deploy-service/weekly", timeout=120, poll_interval=0.5)

    assert run.state is not None
    assert run.state.is_completed(), run.state
    assert isinstance(run.state.result(), Endpoint)


@pytest.mark.timeout(200)
def test_repair_runs_by_the_served_flow(tmp_path: Path) -> None:
    text = snippet(DOCS / "how-to" / "schedules.md", "reconcile_services.serve(")
    with program(tmp_path, text, "reconcile-services/hourly"):
        run: Any = run_deployment(
            "reconcile-services/hourly", parameters={"dry_run": True}, timeout=120, poll_interval=0.5
        )

    assert run.state is not None
    assert run.state.is_final(), run.state


@pytest.mark.timeout(200)
def test_the_caller_of_the_shipped_deployment_prints_the_url(tmp_path: Path) -> None:
    from prefect_dstack import stop_service

    shutil.copytree(EXAMPLES, tmp_path / "examples")
    (tmp_path / "caller.py").write_text(snippet(DOCS / "how-to" / "schedules.md", "run_deployment("))
    text = (ROOT / "flows" / "deploy_service.py").read_text()
    with program(tmp_path, text, "deploy-service/default"):
        done = subprocess.run(
            [sys.executable, "caller.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    stop_service("hello")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("http://127.0.0.1:")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pipeline_waits_for_a_person(answer: Path) -> None:
    """What the page on approvals shows, with the application of the tutorial."""
    page = DOCS / "how-to" / "approve.md"
    (answer / "answer.dstack.yml").unlink()
    (answer / "serve.dstack.yml").unlink()
    file = answer / "shop.dstack.yml"
    file.write_text(blocks(page, "yaml")[0].replace("  approval: true\n", ""))
    (answer / "pipeline.py").write_text(snippet(page, "def release_model"))

    def typed(*command: str) -> str:
        done = subprocess.run(
            command,
            cwd=answer,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done
        return done.stdout

    program_name = str(BIN / "prefect-dstack")
    typed(program_name, "apply", "-y")
    typed(sys.executable, "pipeline.py")
    assert "shop@2" in typed(program_name, "ps", "shop")
    _, approval = blocks(page, "console")
    for command in re.findall(r"^\$ prefect-dstack (.*)$", approval, re.MULTILINE):
        shown = typed(program_name, *shlex.split(command), *(["-y"] if command.startswith("approve") else []))
    assert "accuracy is up" in shown
    (answer / "app.py").write_text((answer / "app.py").read_text() + "\n")
    file.write_text(blocks(page, "yaml")[0])
    said = typed(program_name, "apply", "-y")
    for line in blocks(page, "console")[0].splitlines()[1:]:
        assert re.search(re.sub(r"\d+", r"\\d+", re.escape(line)), said), (line, said)
    typed(program_name, "reject", "shop", "-y")
    forget("shop")


def test_the_account_is_saved(tmp_path: Path, prefect_server: PrefectServer) -> None:
    (tmp_path / "account.py").write_text(snippet(DOCS / "how-to" / "aws.md", "DstackAwsBackend("))

    subprocess.run([sys.executable, "account.py"], cwd=tmp_path, timeout=60, check=True)

    with get_client(sync_client=True) as client:
        document = client.read_block_document_by_name("default", "dstack-aws-backend")
        client.delete_block_document(document.id)


def commands() -> list[tuple[str, list[str]]]:
    """The commands of the tutorial from its third part on, each with what it wrote."""
    text = (DOCS / "tutorial.md").read_text()
    return commands_in(text[text.index("## 3.") :])


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """The commands in a page, each with what it wrote."""
    typed = []
    for session in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
            command, *output = part.splitlines()
            typed.append((command, output))
    return typed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tutorial(answer: Path, home: Home) -> None:
    """Word for word, but for the port, how long the load lasts, and which process is killed."""
    (answer / "load.py").write_text(blocks(DOCS / "tutorial.md", "python")[1].replace("8080", str(home.port)))
    code, load = 0, None
    for command, documented in commands():
        if command.startswith("python load.py"):
            load = subprocess.Popen(
                [sys.executable, "load.py", "5"], cwd=answer, stdout=subprocess.PIPE, text=True
            )
            continue
        if command == "wait":
            assert load is not None
            answers = load.communicate(timeout=60)[0]
            assert answers
            assert "failed" not in answers
            continue
        if command == "echo $?":
            assert documented == [str(code)]
            continue
        if command.startswith("kill -9"):
            replica = next(it for it in home.processes() if it.cmdline()[1:] == ["app.py"])
            replica.kill()
            continue
        done = subprocess.run(
            ["bash", "-c", command.replace("8080", str(home.port))],
            cwd=answer,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        code = done.returncode
        assert code in (0, 2), f"{command}: {done}"
        if documented and command != "prefect-dstack server stop" and "history" not in command:
            last = documented[-1].strip().replace("8080", str(home.port))
            written = (done.stdout + done.stderr).splitlines()
            pattern = ".*".join(re.escape(part) for part in last.split("[...]"))
            assert any(re.fullmatch(pattern, line.strip()) for line in written), f"{command}: {done}"


def named(text: str, name: str) -> str:
    """A service of a page under a name that no other test has."""
    return re.sub(r"^name: .*$", f"name: {name}", text, flags=re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository as the page about Python and repositories has it."""
    (written,) = blocks(DOCS / "how-to" / "python-and-repos.md", "python")
    project = repository(tmp_path / "project", server__py=written, requirements__txt="")
    (project / "deploy").mkdir()
    return project


@pytest.mark.timeout(300)
def test_the_files_about_python_and_repositories(
    project: Path, tmp_path: Path, deploy: Callable[..., Endpoint], name: str
) -> None:
    from prefect.blocks.system import Secret

    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    of_python, _, local, remote, private = blocks(DOCS / "how-to" / "python-and-repos.md", "yaml")

    def answer(text: str, file: Path) -> str:
        file.write_text(named(text, name).replace("3.11", here))
        return httpx.get(deploy(file).url).text

    assert answer(of_python, project / "a.dstack.yml").startswith(f"{here} in ")
    assert f"/{name}-1-0/venv" in httpx.get(str(load_record(name).endpoint)).text
    (project / "server.py").write_text((project / "server.py").read_text().replace(" in ", " within "))
    assert " within " in answer(local, project / "deploy" / "a.dstack.yml")

    git(tmp_path, "clone", "--quiet", "--bare", str(project), "bare.git")
    Secret(value="hunter2").save("git-token", overwrite=True)
    with serving(tmp_path / "bare.git", "git", "hunter2") as url:
        address = "https://git.example.com/acme/project.git"
        public = remote.replace(address, f"file://{tmp_path}/bare.git")
        assert " in " in answer(public, tmp_path / "b.dstack.yml")
        host, path = url.removeprefix("http://").split("/", 1)
        opened = private.replace("https://", "http://").replace(
            "git.example.com/acme/project.git", f"{host}/{path}"
        )
        opened = opened.replace("- http", "- url: http")
        assert " in " in answer(opened, tmp_path / "c.dstack.yml")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_on_dev_environments(tmp_path: Path, home: Home) -> None:
    page = DOCS / "how-to" / "dev-environments.md"
    directory = tmp_path / "workbench"
    directory.mkdir()
    (directory / "workbench.dstack.yml").write_text(blocks(page, "yaml")[0])
    for command, documented in commands_in(page.read_text()):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=directory,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout.splitlines()) == (0, documented), f"{command}: {done}"
    wait_until(lambda: not home.leftovers(), 60, "nothing is left")
