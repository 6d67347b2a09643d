"""A model that is worse on the holdout is rejected every time, an equal one passes every time."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_dstack import Endpoint, Evaluation, Release
from prefect_dstack.errors import RejectedError
from tests.flows.asking import Asking
from tests.flows.conftest import deploy, stop

__all__ = ["deploy", "stop"]

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

Deploy = Callable[..., Endpoint]

TIMES = 20
# The model that serves is right about all of these, and the worse one about 95 of 100.
HOLDOUT = [(number / 100, number >= 50) for number in range(100)]
GOOD, WORSE = "0.5", "0.55"
MODEL = """
import json, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

THRESHOLD, REVISION = float(os.environ["THRESHOLD"]), os.environ["DSTACK_REVISION"]

class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"revision": REVISION})

    def do_POST(self):
        values = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer([value >= THRESHOLD for value in values])

    def log_message(self, *args):
        pass

ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Model).serve_forever()
"""


def accuracy(url: str) -> float:
    body = json.dumps([value for value, _ in HOLDOUT]).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as answer:
        predicted = json.load(answer)
    return sum(is_one == label for is_one, (_, label) in zip(predicted, HOLDOUT, strict=True)) / len(HOLDOUT)


def no_worse(release: Release) -> Evaluation:
    assert release.serving_url is not None
    new, old = accuracy(release.candidate_url), accuracy(release.serving_url)
    return Evaluation(passed=new >= old - 0.02, score=new, reason=f"{new:.2f} against {old:.2f}")


def test_twenty_of_twenty(deploy: Deploy, tmp_path: Path) -> None:
    app = tmp_path / "model.py"
    app.write_text(MODEL)
    service = {"commands": [f"exec python3 {app}"]}
    endpoint = deploy(env={"THRESHOLD": GOOD}, **service)
    rejected, passed = 0, [1]
    with Asking(endpoint.url) as asking:
        for _ in range(TIMES):
            with pytest.raises(RejectedError, match=r"0\.95 against 1\.00"):
                deploy(env={"THRESHOLD": WORSE}, evaluate=no_worse, force=True, **service)
            rejected += 1
            released = deploy(env={"THRESHOLD": GOOD}, evaluate=no_worse, force=True, **service)
            passed.append(released.revision)

    assert (rejected, len(passed) - 1) == (TIMES, TIMES)
    assert set(asking.answers) <= set(map(str, passed)), "no client saw a rejected one"
    assert len(asking.answers) > TIMES
    assert asking.failures == []
