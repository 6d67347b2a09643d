"""The command line, in processes that start at once: forked from one that has imported it already."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

import psutil

PRELOADED = ["tests.chaos.commands", "prefect_dstack.cli.main", "prefect_dstack.flows.deploy"]
PRELOADED += ["prefect_dstack.flows.reconcile", "prefect_dstack.flows.run_task"]
PIPELINE, WORKER, ASK_WORKER = "pipeline", "worker", "ask-worker"
# Where the worker waits for what it is asked for.
DEPLOYMENT = "chaos"
# Seconds for a run of the worker; one whose worker was killed does not end.
RUN = 60.0

context = multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def prepared(variables: Mapping[str, str]) -> Iterator[None]:
    """Run the process from which commands are forked; it belongs to no test's home, and ends with this.

    Args:
        variables: More of its environment, which only a program that is started can take up.
    """
    before = dict(os.environ)
    _stop()
    os.environ |= variables
    try:
        context.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ |= before
    yield
    _stop()


def _stop() -> None:
    """End it, if it runs: it may be that of other tests, which have other variables."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


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
        self._command = Command([WORKER], self.directory, log, os.environ)

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
        environment: Its variables.

    Attributes:
        began: When it was started, on the monotonic clock.
    """

    def __init__(
        self, arguments: Sequence[str], directory: Path, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.arguments, self.log = tuple(arguments), log
        log.touch()
        self.began = time.monotonic()
        self.process = context.Process(target=_run, args=(self.arguments, directory, log, dict(environment)))
        self.process.start()

    @property
    def output(self) -> str:
        """What it has written so far, to people and to programs."""
        return self.log.read_text()

    @property
    def result(self) -> str:
        """What it has written for programs."""
        return self.log.with_suffix(".json").read_text()

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


def _run(arguments: tuple[str, ...], directory: Path, log: Path, environment: dict[str, str]) -> None:
    os.chdir(directory)
    os.environ.clear()
    os.environ |= environment
    for descriptor, path in ((0, Path(os.devnull)), (1, log.with_suffix(".json")), (2, log)):
        target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(target, descriptor)
    # Line by line, whoever dies in the middle.
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
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
