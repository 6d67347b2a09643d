"""What another Prefect API has deployed to the same machines is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from prefect_dstack import reconcile_services
from tests.command_line import CommandLine
from tests.flows.conftest import get, hello
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration


def test_a_service_of_another_prefect_api_serves_on_until_it_is_said_that_it_is_nobodys(
    prefect_server: PrefectServer, home: Home, cli: CommandLine, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "hello.dstack.yml"
    file.write_text(yaml.safe_dump(hello(name)))
    other = PrefectServer(tmp_path / "other")
    other.start()
    try:
        elsewhere = {"PREFECT_API_URL": other.url}
        endpoint = cli.ok("apply", "-f", file, "-y", "--json", environment=elsewhere).json["endpoint"]
        assert reconcile_services() == []
        assert get(endpoint["url"])["revision"] == "1"
        # Its files are still there, too.
        cli.ok("scale", name, "2", environment=elsewhere)
        cli.ok("reconcile", environment=elsewhere)
        (service,) = cli.ok("ps", "--json", environment=elsewhere).json
        assert (service["name"], service["state"], service["problems"]) == (name, "serving", [])
    finally:
        other.stop()

    lines = reconcile_services(foreign=True)
    assert [line for line in lines if f"{name}-1-0" in line] != []
    assert list(home.state.glob("replicas/*/")) == []
    assert reconcile_services() == []
