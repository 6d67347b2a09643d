"""What a service brings along: a repository with its uncommitted changes, one of another machine, files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.blocks.system import Secret

from prefect_dstack import Endpoint, deploy_service, rollback_service
from prefect_dstack.errors import ConfigurationError, DeploymentError
from tests.bundles.repositories import git, repository, serving
from tests.flows.conftest import get
from tests.home import Home
from tests.testbed.engine import LocalEngine
from tests.testbed.images import load_image

pytestmark = pytest.mark.integration

# Answers with the files below the directory that it starts in, and what is in them.
APP = """
import http.server, json, os, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        files = {str(p): p.read_text() for p in pathlib.Path().rglob("*.txt") if p.is_file()}
        body = json.dumps(files).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with its configuration in a directory of its own."""
    project = repository(tmp_path / "project", app__py=APP, committed__txt="one", __gitignore="secret.txt\n")
    (project / "deploy").mkdir()
    (project / "secret.txt").write_text("not for others")
    return project


@pytest.fixture
def apply(project: Path, stop: Callable[[], None], name: str) -> Callable[..., Endpoint]:
    """Deploys the configuration in the repository from its file."""

    def apply(**keys: Any) -> Endpoint:
        probes = [{"type": "http", "url": "/", "interval": "1s"}]
        service = {"type": "service", "name": name, "port": 8000, "probes": probes}
        file = project / "deploy" / "service.dstack.yml"
        file.write_text(yaml.safe_dump({**service, "commands": ["exec python3 app.py"], **keys}))
        return deploy_service(file)

    return apply


def test_a_local_one_is_as_it_is_with_uncommitted_changes(
    apply: Callable[..., Endpoint], project: Path
) -> None:
    (project / "committed.txt").write_text("changed")
    (project / "fresh.txt").write_text("never added")

    endpoint = apply(repos=[".."])
    assert get(endpoint.url) == {"committed.txt": "changed", "fresh.txt": "never added"}
    assert not apply(repos=[".."]).changed

    (project / "fresh.txt").write_text("edited")
    assert get(endpoint.url)["fresh.txt"] == "never added"
    assert get(apply(repos=[".."]).url)["fresh.txt"] == "edited"


def test_a_path_and_files_are_below_the_working_directory(
    apply: Callable[..., Endpoint], project: Path
) -> None:
    (project / "extra.txt").write_text("file")
    (project / "shared" / "deep").mkdir(parents=True)
    (project / "shared" / "deep" / "note.txt").write_text("directory")

    endpoint = apply(
        repos=["..:src"],
        files=["../extra.txt:extra.txt", "../shared:data"],
        working_dir="work",
        commands=["exec python3 src/app.py"],
    )

    assert get(endpoint.url) == {
        "src/committed.txt": "one",
        "src/extra.txt": "file",
        "src/shared/deep/note.txt": "directory",
        "extra.txt": "file",
        "data/deep/note.txt": "directory",
    }


def test_one_of_another_machine_is_the_commit_of_its_revision(
    apply: Callable[..., Endpoint], project: Path, tmp_path: Path, home: Home, name: str
) -> None:
    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(project), "bare.git")
    Secret(value="hunter2").save("git-token", overwrite=True)
    with serving(bare, "git", "hunter2") as url:
        address = url.replace("http://", "http://${{ secrets.git-token }}@")
        assert get(apply(repos=[{"url": address, "branch": "main"}]).url) == {"committed.txt": "one"}
        (project / "committed.txt").write_text("two")
        git(project, "commit", "--quiet", "--all", "--message=change")
        git(project, "push", "--quiet", str(bare), "main")
        git(bare, "update-server-info")
        endpoint = apply(repos=[{"url": address, "branch": "main"}])
        assert (endpoint.revision, get(endpoint.url)) == (2, {"committed.txt": "two"})

    # A revision has its own copy: nobody is asked again.
    rollback_service(name)
    assert get(endpoint.url) == {"committed.txt": "one"}
    told = subprocess.run(["grep", "-rl", "hunter2", home.state], capture_output=True, text=True, check=False)
    assert told.stdout == ""
    with pytest.raises(ConfigurationError, match="cannot be fetched"):
        apply(repos=[{"url": address, "branch": "main"}])
    assert get(endpoint.url) == {"committed.txt": "one"}


@pytest.mark.docker
def test_a_container_has_it_in_its_working_directory(
    apply: Callable[..., Endpoint],
    project: Path,
    docker_engine: LocalEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_engine.url)
    monkeypatch.setenv("PREFECT_DSTACK_DEFAULT_IMAGE", load_image(docker_engine, "uv"))
    (project / "fresh.txt").write_text("never added")
    keys: dict[str, Any] = {"backends": ["local", "ssh"]}

    endpoint = apply(repos=[".."], files=["../fresh.txt:notes/a.txt"], **keys)
    assert get(endpoint.url) == {
        "committed.txt": "one",
        "fresh.txt": "never added",
        "notes/a.txt": "never added",
    }

    with pytest.raises((ConfigurationError, DeploymentError), match=r"repos\.0\.path: /etc is not empty"):
        apply(repos=["..:/etc"], **keys)
    endpoint = apply(
        repos=[{"local_path": "..", "path": "/usr/local", "if_exists": "skip"}],
        files=["../app.py:app.py", "../fresh.txt:fresh.txt"],
        **keys,
    )
    assert get(endpoint.url) == {"fresh.txt": "never added"}
