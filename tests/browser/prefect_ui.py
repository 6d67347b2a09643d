"""Prefect's UI in a headless Chromium, and pictures of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.prefect_server import PrefectServer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What the UI would load from other hosts, such as its statistics.
NOWHERE_ELSE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
WIDTH, HEIGHT = 1200, 800
SCALE = 1.5
# Seconds for a page that shares its machine with a server, a worker and replicas.
PATIENCE = 120
# A palette is enough for what the UI shows, and makes small files.
COLOURS = 64


class PrefectUI:
    """A browser before the UI of a Prefect server.

    Args:
        page: A page of the browser.
        server: The server.
        pictures: Where pictures go.
    """

    def __init__(self, page: Page, server: PrefectServer, pictures: Path) -> None:
        self.page = page
        self._address = server.url.removesuffix("/api")
        self._pictures = pictures

    def open(self, path: str) -> None:
        """Open a page of the UI.

        Args:
            path: Its path, such as `/deployments`.
        """
        self.page.goto(f"{self._address}/v2{path}")

    def picture(self, name: str, of: Locator | None = None, height: int = 800) -> None:
        """Take a picture of the page.

        Args:
            name: The name of its file, without the ending.
            of: The part to take; default: all but Prefect's own navigation.
            height: That of the window meanwhile.
        """
        file = self._pictures / f"{name}.png"
        before = self.page.viewport_size or {"width": WIDTH, "height": HEIGHT}
        self.page.set_viewport_size({"width": WIDTH, "height": height})
        self.page.mouse.move(0, 0)
        self.page.wait_for_load_state("networkidle")
        box = (of or self.page.locator("main")).bounding_box()
        assert box is not None
        self.page.screenshot(
            path=file,
            animations="disabled",
            clip={
                "x": box["x"],
                "y": box["y"],
                "width": box["width"],
                "height": min(box["height"], height - box["y"]),
            },
        )
        with Image.open(file) as taken:
            small = taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(file, optimize=True)
        self.page.set_viewport_size(before)


@contextmanager
def prefect_ui(server: PrefectServer, pictures: Path) -> Iterator[PrefectUI]:
    """Run a browser before the UI of a server.

    While it runs, its thread has an event loop: what calls Prefect has to be a process of its own.

    Args:
        server: The server.
        pictures: Where pictures go.
    """
    expect.set_options(timeout=PATIENCE * 1000)
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[NOWHERE_ELSE])
        context = browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT},
            device_scale_factor=SCALE,
            color_scheme="light",
            timezone_id="UTC",
        )
        context.set_default_timeout(PATIENCE * 1000)
        try:
            yield PrefectUI(context.new_page(), server, pictures)
        finally:
            browser.close()


def picture_directory(otherwise: Path) -> Path:
    """Return where pictures go: `make pictures` names the directory of the docs."""
    return Path(os.environ.get("PICTURES", otherwise))
