"""Every key is acted on or refused by name; none is silently ignored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import prefect_dstack
from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.support import NEEDS_IMAGE, NEVER, check_support, unsupported_keys
from prefect_dstack.errors import UnsupportedKeyError

PACKAGE = Path(prefect_dstack.__file__).parent
SAMPLE = Path(__file__).parents[1] / "configurations" / "samples" / "service.dstack.yml"

# What in the code acts on a key; each pattern must be found outside of `configurations`.
ACTED_ON = {
    "auth": r"configuration\.auth",
    "availability_zones": r"wanted\.availability_zones",
    "backends": r"configuration\.backends",
    "client_max_body_size": r"configuration\.client_max_body_size",
    "commands": r"configuration\.commands",
    "cors": r"configuration\.cors",
    "domain": r"configuration\.host_names",
    "domains": r"configuration\.host_names",
    "entrypoint": r"configuration\.entrypoint",
    "env": r"resolve_environment\(",
    "files": r"configuration\.files",
    "fleets": r"configuration\.fleets",
    "gateway": r"resolve_gateway\(configuration",
    "https": r"configuration\.https",
    "idle_duration": r'"max_duration", "idle_duration"',
    "image": r"configuration\.image",
    "instance_types": r"wanted\.instance_types",
    "max_concurrency": r"configuration\.max_concurrency",
    "max_duration": r'"max_duration", "idle_duration"',
    "max_price": r"wanted\.max_price",
    "model": r"configuration\.model",
    "name": r"configuration\.name",
    "path_prefix": r"configuration\.path_prefix",
    "port": r"configuration\.port",
    "privileged": r"configuration\.privileged",
    "probes": r"configuration\.probes",
    "queue_timeout": r"configuration\.queue_timeout",
    "rate_limits": r"configuration\.rate_limits",
    "regions": r"wanted\.regions",
    "registry_auth": r"resolve_registry_auth\(configuration",
    "replicas": r"configuration\.replica_count",
    "resources": r"configuration\.resources",
    "retain": r"configuration\.retain",
    "rollout": r"configuration\.rollout",
    "shell": r"configuration\.shell",
    "spot_policy": r"wanted\.spot_policy",
    "stop_duration": r"configuration\.stop_duration",
    "strip_prefix": r"configuration\.strip_prefix",
    "tags": r"configuration\.tags",
    "timeouts": r"configuration\.timeouts",
    "type": r"configuration\.type",
    "user": r"configuration\.user",
    "volumes": r"configuration\.volumes",
    "working_dir": r"configuration\.working_dir",
}


def service(**keys: Any) -> ServiceConfiguration:
    """A service; without an image unless one is given, and able to run in any case."""
    if "image" not in keys and not isinstance(keys.get("replicas"), list):
        keys = {"commands": ["app"], **keys}
    configuration = load_configuration({"type": "service", "port": 8000, **keys}, name="hello")
    assert isinstance(configuration, ServiceConfiguration)
    return configuration


def refused(**keys: Any) -> list[str]:
    return [key for key, _ in unsupported_keys(service(**keys))]


class TestEveryKey:
    def test_is_either_acted_on_or_refused(self) -> None:
        """A new key of the model belongs into `support.py`, or into the table above with what acts on it."""
        keys = set(ServiceConfiguration.model_fields)

        assert keys == ACTED_ON.keys() | NEVER.keys()
        assert not ACTED_ON.keys() & NEVER.keys()
        assert NEEDS_IMAGE.keys() <= ACTED_ON.keys()

    @pytest.mark.parametrize("key", sorted(ACTED_ON))
    def test_that_is_not_refused_is_read_somewhere(self, key: str) -> None:
        sources = (path for path in PACKAGE.rglob("*.py") if "configurations" not in path.parts)

        assert any(re.search(ACTED_ON[key], source.read_text()) for source in sources)

    def test_of_the_sample_with_all_keys_is_refused_by_name(self) -> None:
        configuration = load_configuration(SAMPLE, environ={"HF_TOKEN": "", "USER": "me"})
        assert isinstance(configuration, ServiceConfiguration)

        with pytest.raises(UnsupportedKeyError) as raised:
            check_support(configuration)

        assert raised.value.key in ServiceConfiguration.model_fields
        assert raised.value.line is not None
        assert str(raised.value).startswith(f"{SAMPLE}:{raised.value.line}: {raised.value.key}: ")


class TestRefuses:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("artifacts", [{"path": "output"}]),
            ("backend_options", [{"type": "aws", "subnet": "x"}]),
            ("build", ["make"]),
            ("cache", ["~/.cache"]),
            ("creation_policy", "reuse"),
            ("docker", True),
            ("dstack", True),
            ("home_dir", "/root"),
            ("instance_name", "one"),
            ("instances", ["one"]),
            ("nvcc", True),
            ("pool_name", "pool"),
            ("priority", 5),
            ("python", "3.12"),
            ("repos", ["."]),
            ("reservation", "cr-0123"),
            ("retry", True),
            ("retry_policy", {"retry": True}),
            ("router", {"type": "sglang"}),
            ("schedule", {"cron": "0 8 * * *"}),
            ("setup", ["pip install it"]),
            ("single_branch", True),
            ("startup_order", "master-first"),
            ("stop_criteria", "all-done"),
            ("termination_idle_time", "1h"),
            ("termination_policy", "dont-destroy"),
            ("utilization_policy", {"min_gpu_utilization": 10, "time_window": "1h"}),
            ("max_duration", "1h"),
            ("idle_duration", "1h"),
            ("gateway", False),
        ],
    )
    def test_what_nothing_acts_on(self, key: str, value: Any) -> None:
        assert refused(**{key: value}) == [key]

    @pytest.mark.parametrize("key", sorted(NEEDS_IMAGE))
    def test_what_is_for_containers_only(self, key: str) -> None:
        value = {
            "entrypoint": "app",
            "files": ["app.py"],
            "privileged": True,
            "registry_auth": {"username": "me", "password": "secret"},
            "tags": {"team": "a"},
            "user": "1000",
            "volumes": ["/data:/data"],
        }[key]

        assert refused(**{key: value}) == [key]
        assert refused(image="app", **{key: value}) == []

    @pytest.mark.parametrize(
        ("keys", "key"),
        [
            ({"replicas": "1..2", "scaling": {"metric": "rps", "target": 1}}, "replicas"),
            ({"replicas": [{"name": "a", "count": 1, "commands": ["app"]}]}, "replicas"),
            ({"model": {"name": "m", "format": "tgi"}}, "model.format"),
            ({"backends": ["aws"]}, "backends"),
            ({"backends": ["local", "ssh"]}, "backends"),
            ({"fleets": ["lab"]}, "fleets"),
            ({"resources": {"shm_size": "1GB"}}, "resources.shm_size"),
            ({"image": "app", "working_dir": "relative"}, "working_dir"),
            ({"image": "app", "entrypoint": "app", "shell": "bash"}, "shell"),
            ({"image": "app", "volumes": ["network:/data"]}, "volumes.0"),
            ({"image": "app", "volumes": ["/data:/data", "/var/run/docker.sock:/x"]}, "volumes.1"),
            ({"image": "app", "volumes": ["/run/docker.sock/:/var/run/docker.sock"]}, "volumes.0"),
            ({"image": "app", "volumes": ["/run:/x"]}, "volumes.0"),
            ({"image": "app", "volumes": ["//var/./run/:/x"]}, "volumes.0"),
            ({"image": "app", "volumes": ["/:/x"]}, "volumes.0"),
        ],
    )
    def test_what_does_not_go_together(self, keys: dict[str, Any], key: str) -> None:
        assert key in refused(**keys)

    def test_says_where_and_why(self) -> None:
        with pytest.raises(UnsupportedKeyError) as raised:
            check_support(service(repos=["."]))

        assert str(raised.value) == (
            "<mapping>: repos: is not acted on yet; use 'files', or clone in 'commands'"
        )
        assert raised.value.exit_code == 2


class TestAccepts:
    @pytest.mark.parametrize(
        "keys",
        [
            {},
            {"dstack": False, "docker": False, "privileged": False},
            {"max_duration": "off", "idle_duration": "off", "stop_duration": "10s"},
            {"replicas": 3, "probes": [{"type": "http", "url": "/"}], "model": "llama"},
            {"working_dir": "app", "shell": "sh", "backends": ["local"], "gateway": True},
            {"image": "app", "working_dir": "/app", "resources": {"shm_size": "1GB"}, "fleets": ["lab"]},
            {"image": "app", "volumes": [{"instance_path": "/data", "path": "/data", "optional": True}]},
        ],
    )
    def test_what_is_acted_on_or_says_nothing(self, keys: dict[str, Any]) -> None:
        assert refused(**keys) == []
        check_support(service(**keys))
