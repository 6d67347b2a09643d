"""The documentation is made from the code, its links lead somewhere, and its files load."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from prefect_dstack.configurations import FleetConfiguration, ServiceConfiguration, load_configuration
from prefect_dstack.domain.fleet_support import check_fleet_support
from prefect_dstack.domain.support import check_support

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FRONT_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
PAGES = [page for page in FRONT_PAGES if page.exists()] + sorted(DOCS.rglob("*.md"))
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
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
