from __future__ import annotations

from pathlib import Path

import pytest

from prefect_dstack.errors import HostUnreachableError
from prefect_dstack.hosts.local_machine import LocalMachine


def test_a_command_is_run_with_its_input() -> None:
    outcome = LocalMachine().run(["sh", "-c", "cat; echo two >&2; exit 3"], stdin=b"one")
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (3, b"one", b"two\n")


def test_one_that_is_not_there_or_no_program_ends_as_in_a_shell(tmp_path: Path) -> None:
    assert LocalMachine().run(["no-such-command"]).exit_code == 127
    (tmp_path / "data").touch()
    outcome = LocalMachine().run([str(tmp_path / "data")])
    assert (outcome.exit_code, outcome.stderr) == (126, f"{tmp_path}/data: Permission denied".encode())


def test_one_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(HostUnreachableError, match=r"sleep did not end within 0\.1 s"):
        LocalMachine().run(["sleep", "60"], timeout=0.1)
