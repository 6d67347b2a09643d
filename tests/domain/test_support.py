"""Every key is acted on or refused by name; none is silently ignored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import prefect_dstack
from prefect_dstack.configurations import Configuration, ServiceConfiguration, load_configuration
from prefect_dstack.configurations.loading import MODELS
from prefect_dstack.domain.support import (
    NEEDS_CONTAINER,
    NEVER,
    OF_RUNS,
    check_support,
    unsupported_keys,
)
from prefect_dstack.errors import ConfigurationError, UnsupportedKeyError
from tests.configurations.dstack_keys import KINDS, Use, uses

PACKAGE = Path(prefect_dstack.__file__).parent
SAMPLE = Path(__file__).parents[1] / "configurations" / "samples" / "service.dstack.yml"

# What in the code acts on a key; each pattern must be found outside of `configurations`.
ACTED_ON = {
    "instances": r"configuration\.instances",
    "schedule": r"loaded\.schedule",
    "access_log": r"configuration\.access_log",
    "auth": r"configuration\.auth",
    "availability_zones": r"wanted\.availability_zones",
    "backends": r"configuration\.backends",
    "budget": r'configuration\.get\("budget"\)',
    "client_max_body_size": r"configuration\.client_max_body_size",
    "commands": r"configuration\.commands",
    "cors": r"configuration\.cors",
    "docker": r"configuration\.docker",
    "domain": r"configuration\.host_names",
    "domains": r"configuration\.host_names",
    "entrypoint": r"configuration\.entrypoint",
    "env": r"resolve_environment\(",
    "files": r"configuration\.files",
    "fleets": r"configuration\.fleets",
    "gateway": r"resolve_gateway\(configuration",
    "https": r"configuration\.https",
    "image": r"configuration\.image",
    "instance_types": r"wanted\.instance_types",
    "max_concurrency": r"configuration\.max_concurrency",
    "max_price": r"wanted\.max_price",
    "model": r"configuration\.model",
    "model_asset": r"configuration\.model_asset",
    "name": r"configuration\.name",
    "nvcc": r"configuration\.nvcc",
    "path_prefix": r"configuration\.path_prefix",
    "port": r"configuration\.port",
    "privileged": r"configuration\.privileged",
    "probes": r"configuration\.probes",
    "python": r"configuration\.python",
    "queue_timeout": r"configuration\.queue_timeout",
    "rate_limits": r"configuration\.rate_limits",
    "regions": r"wanted\.regions",
    "registry_auth": r"resolve_registry_auth\(configuration",
    "replicas": r"configuration\.replica_count",
    "repos": r"configuration\.repos",
    "resources": r"configuration\.resources",
    "restart_after": r"configuration\.restart_after",
    "retain": r"configuration\.retain",
    "rollout": r"configuration\.rollout",
    "scaling": r"configuration\.scaling\b",
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


# The same for the keys that only one kind has.
ACTED_ON_BY = {
    "service": {"groups": r"configuration\.replica_groups", "retry": r"configuration\.retry"},
    "task": {
        "priority": r"run\.configuration\.get\(\"priority\"\)",
        "utilization_policy": r"configuration\.utilization_policy",
        "groups": r"configuration\.groups",
        "max_duration": r"configuration\.max_duration",
        "nodes": r"configuration\.nodes",
        "ports": r"configuration\.ports",
        "retry": r"configuration\.retry",
        "startup_order": r"configuration\.startup_order",
        "stop_criteria": r"configuration\.stop_criteria",
    },
    "dev-environment": {
        "priority": r"run\.configuration\.get\(\"priority\"\)",
        "utilization_policy": r"configuration\.utilization_policy",
        "ide": r"configuration\.ide",
        "inactivity_duration": r"configuration\.inactivity_duration",
        "init": r"configuration\.init",
        "max_duration": r"configuration\.max_duration",
        "ports": r"configuration\.ports",
        "retry": r"configuration\.retry",
    },
}


# The same for the keys in mappings, under the names that dstack gives the mappings.
ACTED_ON_INSIDE = {
    "CPUSpec.arch": r"cpu\.arch",
    "CPUSpec.count": r"cpu\.count",
    "DiskSpec.size": r"disk\.size",
    "EntityReference.name": r"configuration\.fleets",
    "EntityReference.project": r"configuration\.fleets",
    "FilePathMapping.local_path": r"mapping\.local_path",
    "FilePathMapping.path": r"mapping\.path",
    "FleetInstanceSelector.fleet": r"configuration\.instances",
    "FleetInstanceSelector.instance": r"configuration\.instances",
    "GPUSpec.compute_capability": r"wanted\.compute_capability",
    "GPUSpec.count": r"wanted\.count",
    "GPUSpec.memory": r"wanted\.memory",
    "GPUSpec.name": r"wanted\.name",
    "GPUSpec.total_memory": r"wanted\.total_memory",
    "GPUSpec.vendor": r"gpu\.vendor",
    "HTTPHeaderSpec.name": r"header\.name",
    "HTTPHeaderSpec.value": r"header\.value",
    "HeaderPartitioningKey.header": r"key\.header",
    "HeaderPartitioningKey.type": r"key\.header",
    "IPAddressPartitioningKey.type": r"key\.header",
    "InstanceHostnameSelector.hostname": r"configuration\.instances",
    "InstanceMountPoint.instance_path": r"volume\.instance_path",
    "InstanceMountPoint.optional": r"volume\.optional",
    "InstanceMountPoint.path": r"volume\.path",
    "InstanceNameSelector.name": r"configuration\.instances",
    "LetsEncryptGatewayCertificate.type": r"certificate\.type",
    "NodeGroup.commands": r"\.commands\b",
    "NodeGroup.name": r"configuration\.groups",
    "NodeGroup.nodes": r"group\.nodes",
    "NodeGroup.ports": r"group\.ports",
    "OpenAIChatModel.format": r"model\.format",
    "OpenAIChatModel.name": r"model\.name",
    "OpenAIChatModel.prefix": r"model\.prefix",
    "OpenAIChatModel.type": r"configuration\.model",
    "PortMapping.container_port": r"port\.port",
    "PortMapping.local_port": r"port\.gateway_port",
    "ProbeConfig.body": r"probe\.body",
    "ProbeConfig.headers": r"probe\.headers",
    "ProbeConfig.interval": r"probe\.interval",
    "ProbeConfig.method": r"probe\.method",
    "ProbeConfig.ready_after": r"probe\.ready_after",
    "ProbeConfig.timeout": r"probe\.timeout",
    "ProbeConfig.type": r"probe\.type",
    "ProbeConfig.until_ready": r"\.repeated_probe",
    "ProbeConfig.url": r"probe\.url",
    "ProfileRetry.duration": r"retry\.duration",
    "ProfileRetry.on_events": r"retry\.on_events",
    "Range_Memory_.max": r"memory\.max",
    "Range_Memory_.min": r"memory\.min",
    "Range_int_.max": r"count\.max",
    "Range_int_.min": r"count\.min",
    "RateLimit.burst": r"limit\.burst",
    "RateLimit.key": r"limit\.key",
    "RateLimit.prefix": r"limit\.prefix",
    "RateLimit.rps": r"limit\.rps",
    "RegistryAuth.password": r"resolve_registry_auth\(configuration",
    "RegistryAuth.username": r"resolve_registry_auth\(configuration",
    "ReplicaGroup.commands": r"group\.commands",
    "ReplicaGroup.count": r"group\.range",
    "ReplicaGroup.docker": r'"docker"',
    "ReplicaGroup.image": r'"image"',
    "ReplicaGroup.name": r"configuration\.group_names",
    "ReplicaGroup.nvcc": r'"nvcc"',
    "ReplicaGroup.privileged": r'"privileged"',
    "ReplicaGroup.python": r'"python"',
    "ReplicaGroup.replicas": r"group\.range",
    "ReplicaGroup.router": r"group\.router",
    "ReplicaGroup.spot_policy": r'"spot_policy"',
    "ReplicaGroupRouterConfig.type": r"router\.type",
    "RepoSpec.branch": r"remote\.branch",
    "RepoSpec.hash": r"remote\.commit",
    "RepoSpec.if_exists": r"repository\.if_exists",
    "RepoSpec.local_path": r"\.local_path",
    "RepoSpec.path": r"repository\.path",
    "RepoSpec.url": r"remote\.url",
    "ResourcesSpec.cpu": r"resources\.cpu",
    "ResourcesSpec.disk": r"\.disk\b",
    "ResourcesSpec.gpu": r"resources\.gpu",
    "ResourcesSpec.memory": r"resources\.memory",
    "ResourcesSpec.shm_size": r"resources\.shm_size",
    "SSHHostParams.blocks": r"host\.blocks",
    "SSHHostParams.hostname": r"host\.hostname",
    "SSHHostParams.identity_file": r"\.identity_file",
    "SSHHostParams.internal_ip": r"host\.internal_ip",
    "SSHHostParams.port": r"\.port\b",
    "SSHHostParams.proxy_jump": r"\.proxy_jump",
    "SSHHostParams.ssh_key": r"\.ssh_key",
    "SSHHostParams.user": r"\.user\b",
    "SSHParams.hosts": r"config\.hosts",
    "SSHParams.identity_file": r"\.identity_file",
    "SSHParams.network": r"\.network\b",
    "SSHParams.port": r"\.port\b",
    "SSHParams.proxy_jump": r"\.proxy_jump",
    "SSHParams.ssh_key": r"\.ssh_key",
    "SSHParams.user": r"\.user\b",
    "SSHProxyParams.hostname": r"\.hostname",
    "SSHProxyParams.identity_file": r"\.identity_file",
    "SSHProxyParams.port": r"\.port\b",
    "SSHProxyParams.ssh_key": r"\.ssh_key",
    "SSHProxyParams.user": r"\.user\b",
    "ScalingSpec.metric": r"scaling\.metric",
    "ScalingSpec.scale_down_delay": r"scaling\.scale_down_delay",
    "ScalingSpec.scale_up_delay": r"scaling\.scale_up_delay",
    "ScalingSpec.target": r"scaling\.target",
    "ScalingSpec.window": r"scaling\.window",
    "Schedule.cron": r"schedule\.cron",
}


def acting_sources() -> list[str]:
    return [path.read_text() for path in PACKAGE.rglob("*.py") if "configurations" not in path.parts]


def service(**keys: Any) -> ServiceConfiguration:
    """A service; without an image unless one is given, and able to run in any case."""
    if "image" not in keys and not isinstance(keys.get("replicas"), list) and "groups" not in keys:
        keys = {"commands": ["app"], **keys}
    configuration = load_configuration({"type": "service", "port": 8000, **keys}, name="hello")
    assert isinstance(configuration, ServiceConfiguration)
    return configuration


def refusals(use: Use) -> list[str]:
    """Why a key is refused, even where a container is run."""
    keys = use.configuration
    runs = use.kind in ("service", "task", "dev-environment")
    if runs and not {"image", "python", "docker", "nvcc"} & keys.keys():
        keys = {**keys, "image": "app"}
    try:
        return [reason for _, reason in unsupported_keys(load_configuration(keys, environ={}))]
    except ConfigurationError as error:
        return [str(error)]


def of_kind(kind: str, **keys: Any) -> Configuration:
    return load_configuration({"type": kind, **keys}, name="hello", environ={})


def refused(**keys: Any) -> list[str]:
    return [key for key, _ in unsupported_keys(service(**keys))]


class TestEveryKey:
    def test_of_a_service_is_either_acted_on_or_refused(self) -> None:
        """A new key of the model belongs into `support.py`, or into the table above with what acts on it."""
        keys = set(ServiceConfiguration.model_fields)

        acted_on = ACTED_ON.keys() | ACTED_ON_BY["service"].keys()
        assert keys == acted_on | NEVER["service"].keys()
        assert not acted_on & NEVER["service"].keys()
        assert NEEDS_CONTAINER.keys() <= ACTED_ON.keys()

    @pytest.mark.parametrize("kind", sorted(MODELS))
    def test_that_is_refused_is_one_of_the_kind(self, kind: str) -> None:
        assert NEVER[kind].keys() <= MODELS[kind].model_fields.keys()
        assert all(reason == reason.strip() and reason for reason in NEVER[kind].values())

    @pytest.mark.parametrize(
        ("kind", "key", "keys"),
        [
            ("service", "max_duration", {"image": "app", "port": 80, "max_duration": "1h"}),
            ("gateway", "replicas", {"replicas": 2}),
            ("volume", "type", {"backend": "aws", "size": "1GB"}),
        ],
    )
    def test_is_acted_on_once_its_line_is_deleted(
        self, kind: str, key: str, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configuration = of_kind(kind, **keys)
        assert list(unsupported_keys(configuration))
        monkeypatch.delitem(NEVER[kind], key)

        assert list(unsupported_keys(configuration)) == []

    @pytest.mark.parametrize(
        ("group", "key"),
        [
            ({"replicas": 1, "reservation": "cr-0123"}, "groups.0.reservation"),
            ({"replicas": 1, "router": {"type": "vllm"}}, "groups.0.router.type"),
            ({"replicas": 1, "router": {"type": "smg", "policy": "random"}}, "groups.0.router.policy"),
            ({"replicas": 1, "resources": {"gpu": "amd:1"}}, "groups.0.resources.gpu.vendor"),
            ({"replicas": 1, "resources": {"shm_size": "1GB"}}, "groups.0.resources.shm_size"),
            ({"replicas": 1, "privileged": True}, "groups.0.privileged"),
            ({"replicas": "0..2", "scaling": {"metric": "rps", "target": 1}}, "groups.0.replicas"),
            ({"count": "0..2", "scaling": {"metric": "rps", "target": 1}}, "groups.0.count"),
        ],
    )
    def test_of_a_group_is_refused_as_that_of_a_run(self, group: dict[str, Any], key: str) -> None:
        configuration = of_kind("service", port=8000, groups=[{"commands": ["app"], **group}])

        assert [found for found, _ in unsupported_keys(configuration)] == [key]

    @pytest.mark.parametrize("keys", [{}, {"image": "app"}])
    def test_that_routes_is_acted_on_in_processes_and_containers(self, keys: dict[str, Any]) -> None:
        groups = [{"replicas": 1, "commands": ["app"], "router": {"type": "smg"}}]

        assert refused(groups=groups, **keys) == []

    def test_that_a_service_says_for_its_groups_is_refused_once(self) -> None:
        groups = [{"name": name, "replicas": 1, "commands": ["app"]} for name in "ab"]

        assert refused(groups=groups, user="1000") == ["user"]
        assert refused(groups=groups, user="1000", image="app") == []

    @pytest.mark.parametrize("kind", ["task", "dev-environment"])
    def test_that_runs_share_is_acted_on_or_refused_for_all_of_them(self, kind: str) -> None:
        own = NEVER[kind].keys() - OF_RUNS.keys()
        left = MODELS[kind].model_fields.keys() - NEVER[kind].keys()

        assert left <= ACTED_ON.keys() | ACTED_ON_BY[kind].keys(), (
            "a key of a kind of its own needs a line in support.py"
        )
        assert not own & ACTED_ON.keys()

    @pytest.mark.parametrize(
        "pattern",
        sorted(
            {
                *ACTED_ON.values(),
                *ACTED_ON_INSIDE.values(),
                *(pattern for keys in ACTED_ON_BY.values() for pattern in keys.values()),
            }
        ),
    )
    def test_that_is_not_refused_is_read_somewhere(self, pattern: str) -> None:
        assert any(re.search(pattern, source) for source in acting_sources())

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_dstack_is_acted_on_or_refused_wherever_it_stands(self, kind: str) -> None:
        ignored = {use.key for use in uses(kind) if len(use.path) > 1 and not refusals(use)}

        assert ignored <= ACTED_ON_INSIDE.keys()

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
            ("dstack", True),
            ("home_dir", "/root"),
            ("instance_name", "one"),
            ("pool_name", "pool"),
            ("priority", 5),
            ("reservation", "cr-0123"),
            ("retry_policy", {"retry": True}),
            ("router", {"type": "sglang"}),
            ("setup", ["pip install it"]),
            ("single_branch", True),
            ("startup_order", "master-first"),
            ("stop_criteria", "all-done"),
            ("termination_idle_time", "1h"),
            ("termination_policy", "dont-destroy"),
            ("utilization_policy", {"min_gpu_utilization": 10, "time_window": "1h"}),
            ("max_duration", "1h"),
            ("idle_duration", "1h"),
        ],
    )
    def test_what_nothing_acts_on(self, key: str, value: Any) -> None:
        assert refused(**{key: value}) == [key]

    @pytest.mark.parametrize("key", sorted(NEEDS_CONTAINER))
    def test_what_is_for_containers_only(self, key: str) -> None:
        value = {
            "docker": True,
            "entrypoint": "app",
            "nvcc": True,
            "privileged": True,
            "tags": {"team": "a"},
            "user": "1000",
            "volumes": ["/data:/data"],
        }[key]

        assert refused(**{key: value}) == [key]
        assert refused(backends=["aws"], **{key: value}) == []
        assert refused(fleets=["lab"], **{key: value}) == []

    @pytest.mark.parametrize(
        ("keys", "key"),
        [
            ({"replicas": [{"count": 1, "commands": ["app"]}, {"count": 1, "image": "app"}]}, "replicas"),
            (
                {
                    "image": "app",
                    "groups": [{"replicas": 1, "commands": ["a ${{ groups[0].replicas[0].IP_ADDRESS }}"]}],
                },
                "groups.0.commands.0",
            ),
            ({"image": "app", "resources": {"gpu": "amd:MI300X"}}, "resources.gpu.vendor"),
            ({"env": {"discovery.type": "single-node"}}, "env.discovery.type"),
            ({"image": "app", "env": {"a.b": "c", "KEY": None}}, "env.a.b"),
            ({"image": "app", "env": {"a.b": "${{ secrets.X }}"}}, "env.a.b"),
            ({"image": "app", "commands": ["app"], "env": {"a.b": "c"}}, "env.a.b"),
            ({"image": "app", "env": {"R": "${{ dstack.node_rank }}"}}, "env.R"),
            ({"image": "app", "volumes": ["/d/${{ dstack.node_rank }}:/d"]}, "volumes.0.instance_path"),
            ({"model": {"name": "m", "format": "tgi"}}, "model.format"),
            ({"registry_auth": {"username": "me", "password": "secret"}}, "registry_auth"),
            ({"registry_auth": {"username": "a", "password": "b"}, "fleets": ["lab"]}, "registry_auth"),
            ({"fleets": ["lab"], "entrypoint": "app", "python": "3.12"}, "python"),
            ({"fleets": ["lab"], "entrypoint": "app", "docker": True}, "docker"),
            ({"repos": [{"local_path": ".", "branch": "main"}]}, "repos.0.branch"),
            ({"repos": [{"local_path": ".", "hash": "0123abc"}]}, "repos.0.hash"),
            ({"image": "app", "repos": [".:../up"]}, "repos.0.path"),
            ({"repos": [".:../up"]}, "repos.0.path"),
            ({"repos": [".:/src"]}, "repos.0.path"),
            ({"files": ["a", "/etc/hosts"]}, "files.1.path"),
            ({"retry": {"on_events": ["error"], "duration": "1h"}}, "retry.duration"),
            ({"files": ["~/.netrc"]}, "files.0.path"),
            ({"files": ["a"], "working_dir": "/srv"}, "working_dir"),
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

    @pytest.mark.parametrize(
        ("kind", "keys", "key"),
        [
            ("task", {"image": "app", "single_branch": True, "repos": ["."]}, "single_branch"),
            ("task", {"commands": ["app"], "volumes": ["/data:/data"]}, "volumes"),
            ("task", {"commands": ["app"], "retry_policy": {"retry": True}}, "retry_policy"),
            ("dev-environment", {"image": "app", "ide": "zed", "version": "1.0"}, "version"),
            ("gateway", {"replicas": 2}, "replicas"),
            ("gateway", {"load_balancer": {"type": "alb"}}, "load_balancer"),
            ("gateway", {"router": {"type": "smg"}}, "router"),
            ("gateway", {"certificate": {"type": "gcp-cm", "name": "x"}}, "certificate.type"),
            ("gateway", {"certificate": {"type": "acm", "arn": "x"}}, "certificate.type"),
            ("fleet", {"nodes": 2}, "nodes"),
            ("fleet", {"ssh_config": {"hosts": ["a"]}, "env": ["HTTP_PROXY"]}, "env"),
            ("volume", {"backend": "aws", "region": "eu-west-1", "size": "1GB"}, "type"),
        ],
    )
    def test_what_nothing_acts_on_of_other_kinds(self, kind: str, keys: dict[str, Any], key: str) -> None:
        with pytest.raises(UnsupportedKeyError) as raised:
            check_support(of_kind(kind, **keys))

        assert raised.value.key == key

    def test_says_where_and_why(self) -> None:
        with pytest.raises(UnsupportedKeyError) as raised:
            check_support(service(reservation="cr-0123"))

        assert str(raised.value) == ("<mapping>: reservation: is not acted on yet; remove it")
        assert raised.value.exit_code == 2


class TestAccepts:
    @pytest.mark.parametrize(
        "keys",
        [
            {},
            {"dstack": False, "docker": False, "privileged": False},
            {"max_duration": "off", "idle_duration": "off", "stop_duration": "10s"},
            {"replicas": "1..2", "scaling": {"metric": "rps", "target": 1}},
            {"groups": [{"commands": ["a"], "count": "1..2", "scaling": {"metric": "rps", "target": 1}}]},
            {"backends": ["local", "aws"]},
            {"python": "3.12"},
            {"files": ["app.py", "../lib:lib"], "working_dir": "app"},
            {"repos": [".."], "python": "3.12"},
            {"retry": True},
            {"retry": False, "gateway": False},
            {"retry": {"on_events": ["no-capacity", "error"], "duration": "1h"}},
            {"retry": {"on_events": ["error", "interruption"]}},
            {"image": "app", "repos": [{"local_path": ".", "path": "/src", "if_exists": "skip"}]},
            {"repos": [{"url": "https://git.example.com/a.git", "branch": "main", "hash": "0123abc"}]},
            {"python": "3.12", "nvcc": True, "backends": ["aws"]},
            {"fleets": ["lab"], "python": "3.12", "volumes": ["/data:/data"], "files": ["app.py"]},
            {"replicas": 3, "probes": [{"type": "http", "url": "/"}], "model": "llama"},
            {"working_dir": "app", "shell": "sh", "backends": ["local"], "gateway": True},
            {"image": "app", "working_dir": "/app", "resources": {"shm_size": "1GB"}, "fleets": ["lab"]},
            {"image": "app", "env": {"discovery.type": "single-node"}},
            {"image": "app", "entrypoint": "app", "commands": ["x"], "env": {"a.b": "c"}},
            {"image": "app", "resources": {"gpu": "nvidia:A100:2"}},
            {"resources": {"gpu": {"compute_capability": 8}}},
            {"image": "app", "volumes": ["~/data:/data:ro"]},
            {"image": "app", "env": {"HF_TOKEN": "${{ env.HF_TOKEN }}", "X": "x${{ env.X }}"}},
            {"image": "app", "registry_auth": {"username": "me", "password": "${{ env.KEY }}"}},
            {"image": "app", "volumes": [{"instance_path": "/data", "path": "/data", "optional": True}]},
        ],
    )
    def test_what_is_acted_on_or_says_nothing(self, keys: dict[str, Any]) -> None:
        assert refused(**keys) == []
        check_support(service(**keys))

    @pytest.mark.parametrize(
        ("kind", "keys"),
        [
            ("task", {"image": "app", "nodes": 1, "env": {"A": "b"}}),
            ("task", {"commands": ["app"]}),
            ("task", {"image": "app", "nodes": 2, "startup_order": "master-first", "max_duration": "1h"}),
            ("task", {"groups": [{"commands": ["app"]}], "stop_criteria": "master-done", "retry": True}),
            ("task", {"image": "app", "ports": [8000]}),
            ("task", {"commands": ["app ${{ dstack.node_rank }}"]}),
            ("dev-environment", {"image": "app", "inactivity_duration": "off"}),
            (
                "dev-environment",
                {"ide": "zed", "init": ["make"], "inactivity_duration": "1h", "ports": [8000]},
            ),
            ("dev-environment", {"image": "app", "max_duration": "1h", "retry": True}),
            ("gateway", {"domain": "example.com", "replicas": 1}),
            ("fleet", {"ssh_config": {"hosts": ["a"]}, "blocks": "auto", "placement": "cluster"}),
        ],
    )
    def test_other_kinds(self, kind: str, keys: dict[str, Any]) -> None:
        check_support(of_kind(kind, **keys))
