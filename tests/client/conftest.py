"""Services for the tests of what programs call."""

from __future__ import annotations

from tests.flows.conftest import deploy, stop

__all__ = ["deploy", "stop"]
