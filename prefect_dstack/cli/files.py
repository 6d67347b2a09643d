"""Which configuration file a command is about."""

from __future__ import annotations

import sys
from pathlib import Path

from prefect_dstack.cli.output import can_ask, err
from prefect_dstack.errors import ConfigurationError, UserError

__all__ = ["choose_source", "configuration_files"]

ENDINGS = (".dstack.yml", ".dstack.yaml")


def configuration_files(directory: Path) -> list[Path]:
    """Return the configuration files in a directory, by name.

    Args:
        directory: The directory.
    """
    return sorted(path for path in directory.iterdir() if path.name.endswith(ENDINGS) and path.is_file())


def choose_source(file: Path | None, positional: Path | None = None) -> Path | str:
    """Determine what to load.

    Args:
        file: What `--file` names: a file, a directory, or `-` for standard input; None: it was not given.
        positional: The same, without `--file`.

    Returns:
        A path, or the text that came from standard input.

    Raises:
        UserError: If there is nothing, or more than one file and nobody to ask.
    """
    if file is not None and positional is not None:
        raise UserError(f"name one configuration: {positional}, or --file {file}")
    named = file if file is not None else positional
    if named is not None and str(named) == "-":
        return _standard_input()
    if named is not None and not named.is_dir():
        return named
    directory = named or Path()
    where = f"in {directory}" if named else "here"
    found = configuration_files(directory)
    if not found:
        raise UserError(
            f"there is no configuration {where} (*.dstack.yml): prefect-dstack init writes one, "
            "or name a file"
        )
    if len(found) == 1:
        return found[0]
    if not can_ask():
        raise UserError(f"there are {len(found)} configurations {where}, name one: {_listing(found)}")
    return _ask(found, where)


def _listing(found: list[Path]) -> str:
    return ", ".join(str(path) for path in found)


def _ask(found: list[Path], where: str) -> Path:
    err.print(f"There are {len(found)} configurations {where}:", markup=False)
    for number, path in enumerate(found, 1):
        err.print(f"  {number}  {path}", markup=False)
    while True:
        answer = err.input(f"Which one? [1-{len(found)}] ", markup=False).strip()
        if answer.isdecimal() and 1 <= int(answer) <= len(found):
            return found[int(answer) - 1]
        for path in found:
            if answer and answer in (path.name, str(path)):
                return path


def _standard_input() -> str:
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError("is not UTF-8 text", source="standard input") from error
    if not text.strip():
        raise ConfigurationError("is empty; start with 'type: service'", source="standard input")
    # A text of one line could be taken for a path.
    return text if "\n" in text else f"{text}\n"
