"""A hook of MkDocs: pages and files outside `docs/` that pages link to become part of the site.

The pages are read in the repository as often as on the site, so their links are those of the repository.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\[[^\]]*\]\()([^)\s#:]+)([)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as the front page, and whatever the pages link to outside `docs/`."""
    waiting = ["README.md", *(f"docs/{it.src_uri}" for it in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        for target in _targets(path) if path.endswith(".md") else ():
            if target not in seen and (ROOT / target).is_file() and not target.startswith("docs/"):
                seen.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where files are on the site."""
    uri = page.file.src_uri
    path = uri if files.get_file_from_path(uri) and page.file.generated_by else f"docs/{uri}"

    def on_site(link: re.Match[str]) -> str:
        target = _resolved(path, link[2]).removeprefix("docs/")
        return f"{link[1]}{posixpath.relpath(target, posixpath.dirname(uri) or '.')}{link[3]}"

    return LINK.sub(on_site, markdown)


def _targets(path: str) -> Iterator[str]:
    for link in LINK.finditer((ROOT / path).read_text()):
        yield _resolved(path, link[2])


def _resolved(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
