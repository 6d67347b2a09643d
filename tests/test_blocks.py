"""The blocks meet Prefect's standard for collections, so that its UI can describe them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from urllib.error import URLError

import prefect
import pytest
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite

from tests.command_line import CommandLine

MODULES = ("prefect_dstack.blocks", "prefect_dstack.aws_blocks")
BLOCKS: list[type[Block]] = [
    getattr(module, name) for module in map(importlib.import_module, MODULES) for name in module.__all__
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
class TestBlocks(BlockStandardTestSuite):
    @pytest.fixture
    def block(self) -> type[Block]:
        raise AssertionError("each test is given its block")

    def test_has_a_name_and_a_slug_of_this_project(self, block: type[Block]) -> None:
        assert block.get_block_type_name().startswith("dstack ")
        assert block.get_block_type_slug().startswith("dstack-")

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        try:
            super().test_has_a_valid_image(block)
        except URLError as error:
            pytest.skip(f"the picture is on the network: {error}")

    def test_shows_pictures_and_pages_that_prefect_itself_shows(self, block: type[Block]) -> None:
        places = ("server/collection_blocks_data.json", "blocks/*.py", "workers/process.py")
        root = Path(prefect.__file__).parent
        known = "".join(file.read_text() for place in places for file in root.glob(place))

        assert f'"{block._logo_url}"' in known
        assert str(block._documentation_url) == str(Secret._documentation_url)

    def test_says_on_its_card_how_it_is_made(self, block: type[Block]) -> None:
        by_hand = block.__name__ == "DstackAwsBackend"

        description = block.get_description()

        assert description is not None
        assert description.startswith("Written by prefect-dstack, not by hand") is not by_hand
        for command in re.findall("`prefect-dstack ([^`]+)`", description):
            CommandLine(Path.cwd()).ok(*command.split(), "--help")


def test_are_found_by_prefect() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    section = project.partition('[project.entry-points."prefect.collections"]\n')[2].partition("\n\n")[0]

    assert {line.split('"')[1] for line in section.splitlines()} == set(MODULES)


def test_are_registered_under_their_slugs() -> None:
    from prefect.utilities.dispatch import lookup_type

    for block in BLOCKS:
        assert lookup_type(Block, block.get_block_type_slug()) is block


def test_keep_what_came_from_the_environment_secret() -> None:
    from prefect.types import SecretDict

    from prefect_dstack.blocks import DstackService

    block = DstackService(record={}, environment=SecretDict({"1": {"TOKEN": "hunter2"}}))

    assert "hunter2" not in repr(block)
    assert "hunter2" not in str(block.model_dump(mode="json"))
