"""`init`: a first file, from a few questions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefect_dstack.cli.output import can_ask, err, out
from prefect_dstack.errors import ConfigurationError, UserError

if TYPE_CHECKING:
    from prefect_dstack.cli.starters import Answers, Starter

__all__ = ["init"]

DEFAULT = "fastapi"
LONGEST_NAME = 40
MOST_REPLICAS = 1000


def _templates(incomplete: str) -> list[str]:
    from prefect_dstack.cli.starters import STARTERS

    return [name for name in STARTERS if name.startswith(incomplete)]


def init(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Where to write it; default: here.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            "-t",
            help="What it starts from: vllm, tgi, llama.cpp, fastapi, gradio, task or dev.",
            autocompletion=_templates,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="The name; default: the directory's.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; take the defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
) -> None:
    """Write a first configuration, with comments."""
    from prefect_dstack.cli.starters import STARTERS

    place = directory or Path()
    if place.exists() and not place.is_dir():
        raise UserError(f"{place}: is not a directory")
    if place.suffix in (".yml", ".yaml"):
        raise UserError(f"{place}: is not a directory; the file is named after the service, so give --name")
    if template is not None and template not in STARTERS:
        raise UserError(f"--template {template}: there are {', '.join(STARTERS)}")
    if not yes and not can_ask() and template is None:
        raise UserError("there is no terminal to ask on: add --yes, or choose a --template")
    asks = can_ask() and not yes
    chosen = template or (_choose() if asks else DEFAULT)
    starter = STARTERS[chosen]
    answers = _answers(starter, name or _name_of(place), asks=asks, named=name is not None)
    file = place / f"{answers.name}.dstack.yml"
    if file.exists() and not force:
        raise UserError(f"{file}: already exists; --force overwrites it, --name chooses another name")
    text = starter.write(answers)
    _check(text)
    try:
        place.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from error
    out.print(f"wrote {file}", markup=False)
    where = "" if place.resolve() == Path.cwd() else f" {file}"
    out.print(f"read it, and then: prefect-dstack apply{where}", style="dim", markup=False)


def _check(text: str) -> None:
    """Refuse an answer of which no file can be made, in its own words."""
    from prefect_dstack.configurations import load_configuration

    try:
        load_configuration(text)
    except ConfigurationError as error:
        raise UserError(f"nothing is written, as one of the answers cannot be used: {error}") from error


def _choose() -> str:
    from prefect_dstack.cli.starters import STARTERS

    err.print("What do you want to create?")
    names = list(STARTERS)
    for number, name in enumerate(names, 1):
        err.print(f"  {number}  {name:<10} {STARTERS[name].summary}", markup=False)
    while True:
        answer = _ask("Template", DEFAULT)
        if answer in STARTERS:
            return answer
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        err.print(f"there are {', '.join(names)}", markup=False, style="yellow")


def _answers(starter: Starter, name: str, *, asks: bool, named: bool) -> Answers:
    from prefect_dstack.cli.starters import Answers

    if not asks:
        return Answers(name, starter.what, starter.gpu or "")
    chosen = name if named else _ask("Name", name)
    what = _ask(starter.asks, starter.what)
    gpu = ""
    if starter.gpu is not None:
        gpu = _ask("GPU, such as 24GB or H100:2", starter.gpu or "none")
        gpu = "" if gpu == "none" else gpu
    replicas = 1
    while starter.scales:
        answer = _ask("Replicas", "1")
        if answer.isdecimal() and 1 <= int(answer) <= MOST_REPLICAS:
            replicas = int(answer)
            break
        err.print(f"a number from 1 to {MOST_REPLICAS}", style="yellow")
    return Answers(chosen, what, gpu, replicas)


def _ask(question: str, default: str) -> str:
    return err.input(f"{question} [{default}] ", markup=False).strip() or default


def _name_of(directory: Path) -> str:
    """Return a name that a service may have, made from a directory's."""
    name = re.sub(r"[^a-z0-9]+", "-", directory.absolute().name.lower()).strip("-")[:LONGEST_NAME].strip("-")
    if not re.match(r"[a-z]", name):
        name = f"app-{name}".strip("-")
    return name
