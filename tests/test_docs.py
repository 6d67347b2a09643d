"""The documentation is made from the code, its links lead somewhere, and its files load."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import typer

from prefect_dstack import errors
from prefect_dstack.cli.main import application
from prefect_dstack.configurations import FleetConfiguration, ServiceConfiguration, load_configuration
from prefect_dstack.domain.fleet_support import check_fleet_support
from prefect_dstack.domain.groups import group_configurations
from prefect_dstack.domain.support import check_support
from prefect_dstack.hosts.ports import free_port

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FRONT_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
PAGES = [page for page in FRONT_PAGES if page.exists()] + sorted(DOCS.rglob("*.md"))
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
PICTURE = re.compile(r"!\[[^\]]+\]\(([^)\s]+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SESSION = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
YAML = re.compile(r"^```ya?ml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", DOCS / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives to the headings of a page."""
    found: Counter[str] = Counter()
    names = set()
    for title in re.findall(r"^#+ +(.+?) *$", CODE.sub("", page.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        names.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return names


def links(page: Path) -> list[str]:
    return LINK.findall(CODE.sub("", page.read_text()))


def leads_to(page: Path, link: str) -> tuple[Path, str]:
    path, _, fragment = link.partition("#")
    return (page.parent / path).resolve() if path else page, fragment


def written_configurations() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, text in enumerate(YAML.findall(page.read_text())):
            lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
            if lines and lines[0].startswith("type:"):
                found.append((f"{name_of(page)}-{number}", text))
    return found


def test_reference_is_what_the_code_says() -> None:
    for path, text in load_generator().pages().items():
        assert (DOCS / path).read_text() == text, f"docs/{path} is out of date: run 'make docs'"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        target, fragment = leads_to(page, link)
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    assert not broken


def test_pictures_are_there_small_and_used() -> None:
    shown = {(page.parent / path).resolve() for page in PAGES for path in PICTURE.findall(page.read_text())}

    assert shown == set((DOCS / "pictures").iterdir())
    assert {it.name for it in shown if it.stat().st_size > 150_000} == set()


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        waiting += [leads_to(page, link)[0] for link in links(page) if "://" not in link]
    assert not {name_of(page) for page in PAGES} - {name_of(page) for page in reached if page in PAGES}


@pytest.mark.parametrize("text", [pytest.param(text, id=place) for place, text in written_configurations()])
def test_configurations_in_the_pages_work(text: str) -> None:
    configuration = load_configuration(text, name="documented", directory=ROOT / "examples")

    if isinstance(configuration, ServiceConfiguration):
        check_support(configuration)
    if isinstance(configuration, FleetConfiguration):
        check_fleet_support(configuration)


def snippets() -> list[Any]:
    """The Python in the pages, without the signatures of the reference and examples that show answers."""
    return [
        pytest.param(text, id=f"{name_of(page)}-{number}")
        for page in PAGES
        for number, text in enumerate(PYTHON.findall(page.read_text()))
        if not re.match(r"(async )?(def|class) |>>> ", text)
    ]


def commands() -> list[Any]:
    """What readers are to type, without what only a shell understands."""
    found = {}
    for page in PAGES:
        for session in SESSION.findall(page.read_text()):
            for line in re.findall(r"^\$ (.*)$", session, re.MULTILINE):
                for typed in re.findall(r"\$\(([^)]*)\)", line) or [line]:
                    words = shlex.split(typed, comments=True)
                    end = next((at for at, word in enumerate(words) if word in ("&", "&&", "|", ">")), None)
                    found[tuple(words[:end])] = f"{name_of(page)}: {' '.join(words[:end])}"
    return [pytest.param(words, id=place) for words, place in found.items()]


@pytest.mark.parametrize("words", [it for it in commands() if it.values[0][:1] == ("prefect-dstack",)])
def test_commands_in_the_pages_are_understood(words: tuple[str, ...]) -> None:
    """Only parsed: sessions that can run anywhere are run by tests/flows/test_documented.py."""
    command: Any = typer.main.get_command(application)
    rest = list(words[1:])
    while hasattr(command, "commands"):
        assert rest, f"{words}: is no whole command"
        assert rest[0] in command.commands, f"{words}: there is no command {rest[0]}"
        command = command.commands[rest.pop(0)]

    command.make_context(command.name, rest)


def mentioned() -> list[Any]:
    """The commands within sentences and tables, with NAME and the like in the place of values."""
    found = {}
    for page in PAGES:
        for text in re.findall(r"`(prefect-dstack [^`]+)`", CODE.sub("", page.read_text())):
            found[text] = f"{name_of(page)}: {text}"
    return [pytest.param(text, id=place) for text, place in found.items()]


@pytest.mark.parametrize("text", mentioned())
def test_commands_in_sentences_have_these_names_and_options(text: str) -> None:
    command: Any = typer.main.get_command(application)
    words = shlex.split(text)[1:]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command = command.commands[words.pop(0)]

    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "--debug"}
    assert {word.partition("=")[0] for word in words if word.startswith("-") and len(word) > 1} <= known


def test_every_error_is_explained() -> None:
    explained = re.findall(r"^##+ (\w+Error)$", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert sorted([*explained, "PrefectDstackError"]) == sorted(errors.__all__)


@pytest.mark.parametrize("words", [it for it in commands() if it.values[0][:1] == ("make",)])
def test_targets_in_the_pages_exist(words: tuple[str, ...]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert {word for word in words[1:] if "=" not in word} <= targets


@pytest.mark.parametrize("text", snippets())
def test_python_in_the_pages_finds_what_it_imports(text: str) -> None:
    tree = ast.parse(text)

    imports: list[ast.stmt] = [it for it in ast.walk(tree) if isinstance(it, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "<documented>", "exec"), {})


@pytest.mark.parametrize("text", snippets())
def test_what_serves_in_the_pages_does_so_only_as_a_program(text: str) -> None:
    """A run of a served flow imports its file: one that serves then waits for itself, and never begins."""
    for statement in ast.parse(text).body:
        if not isinstance(statement, ast.If | ast.FunctionDef):
            assert ".serve(" not in ast.unparse(statement)


@pytest.mark.parametrize(
    "text", [pytest.param(text, id=place) for place, text in written_configurations() if "app.py" in text]
)
def test_services_in_the_pages_have_what_their_application_needs(text: str, tmp_path: Path) -> None:
    configuration = load_configuration(text, name="documented", directory=tmp_path)
    assert isinstance(configuration, ServiceConfiguration)
    is_hello = "name: hello" in text or "GREETING" in text
    tutorial = PYTHON.findall((DOCS / "tutorial.md").read_text())[0]
    hello = (ROOT / "examples" / "hello" / "app.py").read_text()
    (tmp_path / "app.py").write_text(hello if is_hello else tutorial)
    environment = {"PATH": os.environ["PATH"], "DSTACK_REVISION": "1"}
    environment |= {name: str(value) for name, value in configuration.env.items()}

    for run in group_configurations(configuration):
        port = free_port()
        process = subprocess.Popen(
            ["sh", "-c", "\n".join(run.commands)],
            cwd=tmp_path,
            env={**environment, "PORT": str(port)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("serving")
            status = httpx.get(f"http://127.0.0.1:{port}/").status_code
        finally:
            process.kill()
            process.communicate()

        assert status == 200
