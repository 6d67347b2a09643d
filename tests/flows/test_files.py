"""A revision is immutable: what it runs is its own copy of its files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from prefect.settings import PREFECT_HOME, temporary_settings

from prefect_dstack import Endpoint, deploy_service, rollback_service, stop_service
from prefect_dstack.domain.revision import changes_of
from prefect_dstack.flows.delete import delete_service
from prefect_dstack.store.records import load_record
from tests.flows.conftest import get
from tests.home import Home
from tests.polling import wait_until

pytestmark = pytest.mark.integration

APP = """
import http.server, json, os, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"greeting": "WORD", "model": pathlib.Path("model/weights").read_text()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
print("listening")
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def project(tmp_path: Path, name: str) -> Path:
    """A service that reads its own code, and a model that `.gitignore` leaves out."""
    project = tmp_path / "project"
    (project / "model").mkdir(parents=True)
    (project / "model" / "weights").write_text("large")
    (project / ".gitignore").write_text("model/\n")
    (project / "README").write_text(f"{name}: no other service has these files")
    service = {"type": "service", "name": name, "port": 8000, "commands": ["exec python3 app.py"]}
    (project / "serve.dstack.yml").write_text(yaml.safe_dump(service))
    edit(project, "one")
    return project


def edit(project: Path, word: str) -> None:
    (project / "app.py").write_text(APP.replace("WORD", word))


def apply(project: Path) -> Endpoint:
    return deploy_service(project / "serve.dstack.yml")


def kill_replica(home: Home) -> None:
    """End the application of the only replica, as the kernel does that lacks memory."""
    (pid,) = [
        process.pid
        for process in home.processes()
        if "app.py" in " ".join(process.cmdline()) and "supervise" not in " ".join(process.cmdline())
    ]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid), 10)


def greeting(url: str) -> str | None:
    try:
        return str(get(url)["greeting"])
    except OSError:
        return None


def test_an_edit_reaches_nobody_before_it_is_applied(
    stop: Callable[[], None], home: Home, name: str, project: Path
) -> None:
    endpoint = apply(project)
    edit(project, "two")
    kill_replica(home)
    wait_until(lambda: greeting(endpoint.url) == "one", 30, "the old code answers again")

    second = apply(project)
    assert (second.changed, second.revision) == (True, 2)
    assert get(endpoint.url) == {"greeting": "two", "model": "large"}
    record = load_record(name)
    assert changes_of(record, record.revision(2)) == "~files: their content changed"
    assert not apply(project).changed

    rollback_service(name)
    assert get(endpoint.url)["greeting"] == "one"
    kill_replica(home)
    wait_until(lambda: greeting(endpoint.url) == "one", 30, "and once more")


def test_nothing_is_left_of_the_copies_after_delete(
    stop: Callable[[], None], home: Home, name: str, project: Path
) -> None:
    apply(project)
    edit(project, "two")
    apply(project)
    bundles = home.state / "bundles"
    assert [path for path in bundles.rglob("app.py") if path.is_file()]
    stop_service(name)
    delete_service(name)
    assert sum(path.stat().st_size for path in bundles.rglob("*") if path.is_file()) == 0


def test_what_is_too_much_is_refused_and_named(home: Home, name: str, project: Path) -> None:
    from prefect_dstack.errors import ConfigurationError

    os.truncate(project / "app.py", 0)
    with (project / "data.bin").open("wb") as stream:
        stream.truncate(600 * 1024**2)
    with pytest.raises(ConfigurationError, match=r"data\.bin \(600 MB\).*\.dstackignore"):
        apply(project)


def test_what_prefect_keeps_in_the_directory_is_no_change(stop: Callable[[], None], project: Path) -> None:
    kept = project / ".prefect"
    kept.mkdir()
    with temporary_settings({PREFECT_HOME: kept}):
        first = apply(project)
        (kept / "prefect.db").write_text("written meanwhile")

        assert not apply(project).changed
        assert first.revision == 1
