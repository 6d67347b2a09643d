"""Files for the tests of backends."""

from tests.cli.conftest import write

__all__ = ["write"]
