"""The command line, and a pipeline and a worker beside it, in processes that may be killed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path

import psutil

from tests.forking import forked

PIPELINE, WORKER, ASK_WORKER = "pipeline", "worker", "ask-worker"
# Where the worker waits for what it is asked for.
DEPLOYMENT = "chaos"
# Seconds for a run of the worker; one whose worker was killed does not end.
RUN = 60.0


class Worker:
    """A process that does what others ask the Prefect API for, each time in a process of its own.

    Args:
        directory: Where it runs, and writes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._command: Command | None = None

    def start(self) -> None:
        """Start it."""
        log = self.directory / "worker.log"
        self._command = Command([WORKER], self.directory, log)

    def kill(self) -> None:
        """End it and its flow runs at once, without a chance to tidy up."""
        if self._command is None or self._command.process.pid is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._command.process.pid).children(recursive=True):
                if process.environ().get("PREFECT__FLOW_RUN_ID"):
                    process.kill()
        self._command.kill()


class Command:
    """A command that runs.

    Args:
        arguments: Of `prefect-dstack`; or `pipeline` and a file, which a flow of the user's own deploys.
        directory: Where it runs.
        log: What it writes goes there.

    Attributes:
        began: When it was started, on the monotonic clock.
    """

    def __init__(self, arguments: Sequence[str], directory: Path, log: Path) -> None:
        self.arguments, self.log = tuple(arguments), log
        self._result = log.with_suffix(".json")
        log.touch()
        self.began = time.monotonic()
        self.process = forked(_run, self.arguments, directory=directory, streams=(self._result, log))

    @property
    def output(self) -> str:
        """What it has written so far, to people and to programs."""
        return self.log.read_text()

    @property
    def result(self) -> str:
        """What it has written for programs."""
        return self._result.read_text()

    @property
    def code(self) -> int | None:
        """Its exit code; negative: the signal that has killed it; None: it runs."""
        return self.process.exitcode

    def kill(self) -> None:
        """End it at once, without a chance to tidy up."""
        self.process.kill()
        self.process.join()

    def __str__(self) -> str:
        return f"{' '.join(self.arguments)} -> {self.code}\n{self.output}"


def _run(arguments: tuple[str, ...]) -> None:
    match arguments:
        case ("pipeline", file):
            _pipeline(file)
        case ("worker",):
            _work()
        case ("ask-worker", file):
            _ask_worker(file)
        case _:
            from prefect_dstack.cli.main import main

            sys.argv = ["prefect-dstack", *arguments]
            main()


def _pipeline(file: str) -> None:
    from prefect import flow

    from prefect_dstack import deploy_service

    @flow
    def train_and_deploy() -> str:
        return deploy_service(file).url

    print(train_and_deploy())


def _work() -> None:
    from prefect_dstack import deploy_service

    deploy_service.serve(name=DEPLOYMENT)


def _ask_worker(file: str) -> None:
    from prefect.deployments import run_deployment

    run = run_deployment(
        f"deploy-service/{DEPLOYMENT}", parameters={"configuration": file}, timeout=RUN, poll_interval=0.5
    )
    assert not isinstance(run, Coroutine)
    print(run.state)
    if run.state is None or not run.state.is_completed():
        sys.exit("the worker has not done it")
