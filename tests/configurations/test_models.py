"""What the many spellings of a key become."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from prefect_dstack.configurations import (
    Auth,
    Certificate,
    DevEnvironmentConfiguration,
    FleetConfiguration,
    FleetNodes,
    GatewayConfiguration,
    Gpu,
    InstanceMount,
    PortMapping,
    Probe,
    Range,
    RateLimit,
    Repository,
    Resources,
    Retry,
    Rollout,
    ServiceConfiguration,
    ServicePort,
    SshHost,
    TaskConfiguration,
    VolumeMount,
    load_configuration,
    written_keys,
)
from prefect_dstack.configurations.profile import parse_cron
from prefect_dstack.errors import ConfigurationError

SCALING = {"metric": "rps", "target": 1}


def service(**keys: Any) -> ServiceConfiguration:
    loaded = load_configuration({"type": "service", "port": 8000, "image": "nginx", **keys}, environ={})
    assert isinstance(loaded, ServiceConfiguration)
    return loaded


def ends(value: Any) -> tuple[Any, Any]:
    assert isinstance(value, Range)
    return value.min, value.max


@pytest.mark.parametrize(
    ("written", "gateway_port", "port"),
    [(8000, None, 8000), ("8000", None, 8000), ("8001:8000", 8001, 8000), (" 80:8000 ", 80, 8000),
     ({"port": 8000}, None, 8000), ({"gateway_port": 81, "port": 8000}, 81, 8000),
     ({"local_port": 81, "container_port": 8000}, 81, 8000)],
)  # fmt: skip
def test_service_ports(written: Any, gateway_port: int | None, port: int) -> None:
    parsed = ServicePort.model_validate(written)
    assert (parsed.gateway_port, parsed.port) == (gateway_port, port)
    assert ServicePort.model_validate(parsed.model_dump()) == parsed


def test_ports_unquoted_in_yaml_are_what_they_look_like() -> None:
    head = "type: service\nimage: a\n"
    assert load_configuration(head + "port: 8001:8000\n").model_dump()["port"] == "8001:8000"
    assert load_configuration(head + "port: 08000\n").model_dump()["port"] == 8000


@pytest.mark.parametrize(
    "written", ["*:8000", "8000:", ":8000", "a:b", 0, 70000, "80:70000", True, 1.5, [], {}, ""]
)
def test_what_is_no_service_port(written: Any) -> None:
    with pytest.raises(ValidationError):
        ServicePort.model_validate(written)


@pytest.mark.parametrize(
    ("written", "local", "inside"),
    [(8000, 8000, 8000), ("80:8000", 80, 8000), ("*:8000", None, 8000), ("8000", 8000, 8000)],
)
def test_port_mappings(written: Any, local: int | None, inside: int) -> None:
    parsed = PortMapping.model_validate(written)
    assert (parsed.local_port, parsed.container_port) == (local, inside)
    assert PortMapping.model_validate(parsed.model_dump()) == parsed


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (2, {"count": 2}),
        ("24GB", {"memory": "24GB"}),
        ("24GB..", {"memory": "24GB.."}),
        ("A100", {"name": ("A100",)}),
        ("A100:2", {"name": ("A100",), "count": 2}),
        ("A100:40GB:1..8", {"name": ("A100",), "memory": "40GB", "count": "1..8"}),
        (
            "nvidia:A100,H100:80GB:2",
            {"vendor": "nvidia", "name": ("A100", "H100"), "memory": "80GB", "count": 2},
        ),
        ("AMD:MI300X", {"vendor": "amd", "name": ("MI300X",)}),
        ("tpu:v5litepod-4", {"vendor": "google", "name": ("v5litepod-4",)}),
        (["A100", "H100"], {"name": ("A100", "H100")}),
        (
            {"name": "A100,H100", "compute_capability": 8},
            {"name": ("A100", "H100"), "compute_capability": (8, 0)},
        ),
        ({"compute_capability": "7.5"}, {"compute_capability": (7, 5)}),
        ({"total_memory": "64GB..", "vendor": "tt"}, {"total_memory": "64GB..", "vendor": "tenstorrent"}),
    ],
)
def test_gpus(written: Any, expected: dict[str, Any]) -> None:
    parsed = Gpu.model_validate(written)
    assert parsed.model_dump(exclude_unset=True) == expected
    assert Gpu.model_validate(parsed.model_dump(mode="json", exclude_unset=True)) == parsed


@pytest.mark.parametrize(
    "written", ["", ":", "A100::2", "A100:H100", "nvidia:amd", "2:3", "x!", True, 1.5, {"n": 1}]
)
def test_what_is_no_gpu(written: Any) -> None:
    with pytest.raises(ValidationError):
        Gpu.model_validate(written)


@pytest.mark.parametrize(
    ("written", "arch", "count"),
    [(4, None, (4, 4)), ("4..", None, (4, None)), ("..4", None, (None, 4)), ("x86:4..", "x86", (4, None)),
     ("arm64:2", "arm", (2, 2)), ({"min": 2}, None, (2, None)),
     ({"arch": "ARM", "count": "2..8"}, "arm", (2, 8))],
)  # fmt: skip
def test_cpus(written: Any, arch: str | None, count: tuple[int | None, int | None]) -> None:
    cpu = Resources(cpu=written).cpu
    assert cpu is not None
    assert (cpu.arch, ends(cpu.count)) == (arch, count)


def test_memory_and_disk_are_gigabytes() -> None:
    parsed = Resources.model_validate({"memory": "512MB..1TB", "shm_size": "8GB", "disk": "100GB.."})
    assert ends(parsed.memory) == (0.5, 1024)
    assert parsed.shm_size == 8
    assert parsed.disk is not None
    assert ends(parsed.disk.size) == (100, None)


@pytest.mark.parametrize(
    ("written", "count", "low", "high"),
    [(None, 1, 1, 1), (2, 2, 2, 2), ("2", 2, 2, 2), ("1..4", 1, 1, 4), ("0..4", 0, 0, 4), ("..3", 0, 0, 3),
     ({"min": 1, "max": 2}, 1, 1, 2),
     ([{"count": 2}, {"count": "1..3", "scaling": {"metric": "rps", "target": 1}}], 3, 3, 5)],
)  # fmt: skip
def test_replicas(written: Any, count: int, low: int, high: int) -> None:
    scaling = (
        {"scaling": {"metric": "rps", "target": 10}} if low != high and not isinstance(written, list) else {}
    )
    loaded = service(replicas=written, **scaling)
    assert loaded.replica_count == count
    assert ends(loaded.replica_range) == (low, high)


def test_groups_are_written_under_either_key() -> None:
    groups = [{"name": "a", "replicas": 2}, {"name": "b", "count": "1..3", "scaling": SCALING}]
    newer, older = service(groups=groups), service(replicas=groups)
    assert newer.replica_groups == older.replica_groups
    assert newer.group_names == older.group_names == ["a", "b"]
    assert ends(newer.replica_range) == ends(older.replica_range) == (3, 5)
    again = load_configuration(newer.model_dump(mode="json", exclude_unset=True))
    assert again == newer


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"groups": [{"replicas": 1}], "replicas": 2}, "replicas: cannot stand beside 'groups'"),
        ({"groups": [{"replicas": 1, "count": 1}]}, "groups.0.count: is the older name of 'replicas'"),
        ({"groups": [{"commands": ["run"]}]}, "groups.0.replicas: is missing"),
        ({"groups": [{"replicas": "1..2"}]}, "groups.0.replicas: is a range, so add 'scaling'"),
        ({"groups": [{"replicas": 1, "name": "a"}, {"replicas": 1, "name": "a"}]}, "groups: has 2 groups"),
        ({"groups": []}, "groups: must not be empty"),
        ({"groups": [{"replicas": 1, "image": "a"}]}, "groups.0.image: is also given for the whole service"),
        ({"groups": [{"replicas": 1, "python": "3.12"}]}, "groups.0.python: cannot stand beside 'image' of"),
        ({"image": None, "groups": [{"replicas": 1, "docker": True, "privileged": False}]}, "beside 'docker"),
        (
            {"groups": [{"replicas": 1, "commands": ["run ${{ groups[1].replicas[0].IP_ADDRESS }}"]}]},
            "groups.0.commands.0: groups\\[1\\].replicas\\[0\\].IP_ADDRESS: no such group",
        ),
        (
            {"groups": [{"replicas": 1, "commands": ["run ${{ groups[0].nodes[0].IP_ADDRESS }}"]}]},
            "the groups here have replicas, not nodes",
        ),
    ],
)
def test_groups_that_are_wrong(keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        service(**keys)


@pytest.mark.parametrize("metric", ["rps", "concurrency", "queue", "latency_p95"])
def test_metrics(metric: str) -> None:
    scaling = service(replicas="1..2", scaling={"metric": metric, "target": 0.5}).scaling
    assert scaling is not None
    assert (scaling.metric, scaling.target, scaling.query) == (metric, 0.5, None)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"metric": "prometheus", "url": "http://prometheus:9090"}, "scaling.query: is missing"),
        ({"metric": "rps", "query": "sum(x)"}, "scaling.query: needs 'metric: prometheus'"),
        ({"metric": "cpu"}, "scaling.metric: must be rps, concurrency, queue, latency_p95 or prometheus"),
    ],
)
def test_metrics_that_are_wrong(keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        service(replicas="1..2", scaling={"target": 1, **keys})


def test_groups_without_a_name_have_their_position() -> None:
    assert service(replicas=[{"count": 1}, {"count": 1, "name": "x"}]).group_names == ["0", "x"]
    with pytest.raises(ConfigurationError, match="has 2 groups with the name '1'"):
        service(replicas=[{"count": 1, "name": "1"}, {"count": 1}])


def test_a_probe_has_the_defaults_of_dstack() -> None:
    probe = Probe()
    assert (probe.type, probe.url, probe.method, probe.interval, probe.timeout) == (
        "http",
        "/",
        "get",
        15,
        10,
    )
    assert (probe.ready_after, probe.until_ready, probe.headers, probe.body) == (1, False, (), None)


@pytest.mark.parametrize("headers", [[{"name": "X-A", "value": 1}], {"X-A": "1"}])
def test_probe_headers(headers: Any) -> None:
    (header,) = Probe(headers=headers).headers
    assert (header.name, header.value) == ("X-A", "1")


@pytest.mark.parametrize("value", ["a\nb", "a\r\nX: y", "\0", "ä"])
def test_a_header_cannot_carry_another_line(value: str) -> None:
    with pytest.raises(ValidationError):
        Probe(headers={"X-A": value})
    with pytest.raises(ValidationError):
        Probe(headers={value: "1"})
    with pytest.raises(ValidationError):
        Probe(url=f"/{value}")


@pytest.mark.parametrize(
    ("written", "enabled", "forward"),
    [(True, True, False), (False, False, False), ("on", True, False), ({"forward": True}, True, True),
     ({"enabled": False}, False, False)],
)  # fmt: skip
def test_auth(written: Any, enabled: bool, forward: bool) -> None:
    assert service().auth is None
    auth = service(auth=written).auth
    assert auth == Auth(enabled=enabled, forward=forward)


@pytest.mark.parametrize(("written", "kept"), [("auto", "auto"), (True, True), ("no", False), (None, None)])
def test_https(written: Any, kept: Any) -> None:
    assert service(https=written).https is kept or service(https=written).https == kept


@pytest.mark.parametrize("written", [1, 0, "sometimes", [], 1.0])
def test_what_is_no_https(written: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be true, false or auto"):
        service(https=written)


@pytest.mark.parametrize("key", ["ip", {"type": "ip"}, {"type": "ip_address"}, {}])
def test_rate_limits_count_by_address_unless_told(key: Any) -> None:
    limit = RateLimit(rps=1, key=key)
    assert (limit.prefix, limit.key.type, limit.burst) == ("/", "ip_address", 0)


def test_models_served() -> None:
    model = service(model="meta-llama/Llama-3.1-8B").model
    assert model is not None
    assert (model.name, model.format, model.prefix, model.type) == (
        "meta-llama/Llama-3.1-8B",
        "openai",
        "/v1",
        "chat",
    )
    with pytest.raises(ConfigurationError, match="is for 'format: tgi' only"):
        service(model={"name": "a", "eos_token": "x"})


def test_hosts_and_paths() -> None:
    loaded = service(domain="A.Example.com", domains=["b.example.com", "a.example.com"], path_prefix="/x/")
    assert loaded.host_names(None) == ("a.example.com", "b.example.com")
    assert loaded.host_names("gate.example.com") == ("a.example.com", "b.example.com")
    assert loaded.path_prefix == "/x"
    assert service().host_names(None) == ()
    more = service(name="s", domains=["b.example.com"])
    assert more.host_names("gate.example.com") == ("s.gate.example.com", "b.example.com")


def test_rollout_defaults() -> None:
    rollout = service().rollout
    assert rollout == Rollout(strategy="rolling", max_surge=1, max_unavailable=0, timeout=600)
    assert service().retain == 10
    assert service().client_max_body_size == 64 * 1024 * 1024


@pytest.mark.parametrize("name", ["judge/default", "Is it good/on this machine", "é/ü"])
def test_a_deployment_judges(name: str) -> None:
    rollout = service(rollout={"evaluation": name, "evaluation_timeout": "5m"}).rollout
    assert (rollout.evaluation, rollout.evaluation_timeout) == (name, 300)


@pytest.mark.parametrize(
    "name", ["judge", "/default", "judge/", "a/b/c", "a%2Fb/c", "judge/x?y", "a\nb/c", 7]
)
def test_what_cannot_name_a_deployment_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"rollout\.evaluation: must be"):
        service(rollout={"evaluation": name})


@pytest.mark.parametrize("written", [3.1, "3.10"])
def test_a_python_that_lost_its_zero(written: Any) -> None:
    assert service(image=None, commands=["x"], python=written).python == "3.10"


@pytest.mark.parametrize("version", ["3.10", "3.1", "3.9", "3.13"])
def test_python_versions_unquoted_in_yaml(version: str) -> None:
    loaded = load_configuration(f"type: task\ncommands: [x]\npython: {version}\n")
    assert isinstance(loaded, TaskConfiguration)
    assert loaded.python == ("3.10" if version == "3.1" else version)


def test_mounts() -> None:
    loaded = service(
        volumes=["w:/w", "/a:/b/", {"name": ["x", "y"], "path": "/z"}, {"instance_path": "/i", "path": "/p"}]
    )
    first, second, third, fourth = loaded.volumes
    assert not any(mount.read_only for mount in loaded.volumes)
    assert first == VolumeMount(name=("w",), path="/w")
    assert second == InstanceMount(instance_path="/a", path="/b")
    assert isinstance(third, VolumeMount)
    assert isinstance(fourth, InstanceMount)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("/data:/data:ro", InstanceMount(instance_path="/data", path="/data", read_only=True)),
        ("/data:/data:rw", InstanceMount(instance_path="/data", path="/data", read_only=False)),
        ("w:/w:ro", VolumeMount(name=("w",), path="/w", read_only=True)),
        ({"name": "w", "path": "/w", "read_only": True}, VolumeMount(name=("w",), path="/w", read_only=True)),
        ("~/.cache:/cache", InstanceMount(instance_path="~/.cache", path="/cache")),
        ("~:/home/me", InstanceMount(instance_path="~", path="/home/me")),
        ({"instance_path": "~/a/", "path": "/a"}, InstanceMount(instance_path="~/a", path="/a")),
    ],
)
def test_mounts_that_are_only_read_or_are_in_the_home_directory(written: Any, expected: Any) -> None:
    (mount,) = service(volumes=[written]).volumes
    assert mount == expected
    assert service(volumes=[mount.model_dump(mode="json", exclude_unset=True)]).volumes == (expected,)


@pytest.mark.parametrize(
    "mount",
    [
        "w",
        "w:rel",
        "/a:b",
        "/a:/b:x",
        "/a:/b:",
        "~me/a:/b",
        "~/../a:/b",
        "../a:/b",
        "/a:/../b",
        "W!:/w",
        ":/w",
        {"path": "/a"},
        5,
    ],
)
def test_what_is_no_mount(mount: Any) -> None:
    with pytest.raises(ConfigurationError, match="volumes"):
        service(volumes=[mount])


@pytest.mark.parametrize(
    ("written", "local", "inside"),
    [
        ("a", "a", "a"),
        ("a:b", "a", "b"),
        ("C:\\a:/b", "C:\\a", "/b"),
        ({"local_path": "a", "path": "b"}, "a", "b"),
    ],
)
def test_files(written: Any, local: str, inside: str) -> None:
    (file,) = service(files=[written]).files
    assert (file.local_path, file.path) == (local, inside)


@pytest.mark.parametrize("written", ["a:b:c", "", "a:", "C:\\a", {"local_path": "a", "path": "C:\\b"}])
def test_what_is_no_file(written: Any) -> None:
    with pytest.raises(ConfigurationError, match="files"):
        service(files=[written])


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (".", {"local_path": "."}),
        (".:src", {"local_path": ".", "path": "src"}),
        ("https://git.example.com/a/b.git", {"url": "https://git.example.com/a/b.git"}),
        ("https://git.example.com/a/b:src", {"url": "https://git.example.com/a/b", "path": "src"}),
        ("git@git.example.com:a/b.git", {"url": "git@git.example.com:a/b.git"}),
        ("https://${{ secrets.T }}@a.b/c:src", {"url": "https://${{ secrets.T }}@a.b/c", "path": "src"}),
        ({"url": "https://me:${{ env.T }}@a.b/c"}, {"url": "https://me:${{ env.T }}@a.b/c"}),
    ],
)
def test_repositories(written: str, expected: dict[str, str]) -> None:
    assert Repository.model_validate(written).model_dump(exclude_unset=True) == expected


@pytest.mark.parametrize(
    "written",
    [{"path": "a"}, {"url": "ext::sh -c x"}, {"url": "--upload-pack=x"}, {"local_path": "a", "url": "https://b/c"},
     {"url": "https://me:password@a.b/c"}, {"url": "https://a.b/${{ secrets.T }}"},
     {"url": "https://${{ secrets.T }@a.b/c"}, {"url": "ssh://${{ secrets.T }}@a.b/c"},
     {"local_path": "${{ secrets.T }}"}, {"local_path": ".", "path": "${{ secrets.T }}"},
     {"local_path": ".", "branch": "--x"}, {"local_path": ".", "hash": "zz"}, "a:b:c:d"],
)  # fmt: skip
def test_what_is_no_repository(written: Any) -> None:
    with pytest.raises(ValidationError):
        Repository.model_validate(written)


@given(
    user=st.sampled_from(["", "me", "${{ secrets.T }}", "me:${{ secrets.T }}", "me:x${{ env.T }}y"]),
    host=st.sampled_from(["git.example.com", "10.0.0.1:8443"]),
    path=st.from_regex(r"[a-z0-9_.~%+-]{1,9}(/[a-z@:0-9_.-]{1,9}){0,3}", fullmatch=True),
)
def test_the_address_of_a_repository_is_taken_apart_from_its_credentials(
    user: str, host: str, path: str
) -> None:
    url = f"https://{user}{'@' if user else ''}{host}/{path}"

    address = Repository(url=url).address

    if "{{" in user:
        assert address == (f"https://{host}/{path}", user)
    else:
        assert address == (url, "")


@pytest.mark.parametrize(
    ("written", "user", "hostname"),
    [("10.0.0.1", None, "10.0.0.1"), ("root@gpu_box", "root", "gpu_box"), ({"hostname": "A.b"}, None, "a.b")],
)
def test_ssh_hosts(written: Any, user: str | None, hostname: str) -> None:
    host = SshHost.model_validate(written)
    assert (host.user, host.hostname) == (user, hostname)


@pytest.mark.parametrize(
    "written", ["-oProxyCommand=x", "a b", "a\nb", "", "user@", "@host", 5, {"user": "a"}]
)
def test_what_is_no_ssh_host(written: Any) -> None:
    with pytest.raises(ValidationError):
        SshHost.model_validate(written)


@pytest.mark.parametrize(
    ("written", "low", "first", "high"),
    [(2, 2, 2, 2), ("0..4", 0, 0, 4), ("1..", 1, 1, None), ({"target": 3, "max": 5}, 0, 3, 5),
     ({"min": None, "max": 1}, 0, 0, 1)],
)  # fmt: skip
def test_nodes_of_a_fleet(written: Any, low: int, first: int, high: int | None) -> None:
    nodes = FleetNodes.model_validate(written)
    assert (nodes.min, nodes.first, nodes.max) == (low, first, high)
    assert FleetNodes.model_validate(nodes.model_dump(exclude_unset=True)) == nodes


def test_certificates() -> None:
    assert GatewayConfiguration().effective_certificate is None
    assert GatewayConfiguration(domain="example.com").effective_certificate == Certificate(type="acme")
    assert GatewayConfiguration(domain="example.com", certificate=None).effective_certificate is None
    own = GatewayConfiguration(certificate={"type": "self-signed"})
    assert own.effective_certificate == Certificate(type="self-signed")
    older = GatewayConfiguration(domain="*.example.com", certificate={"type": "lets-encrypt"})
    assert (older.domain, older.effective_certificate) == ("example.com", Certificate(type="acme"))


def test_https_ports() -> None:
    assert GatewayConfiguration().effective_https_port is None
    assert GatewayConfiguration(domain="example.com").effective_https_port == 8443
    assert GatewayConfiguration(domain="example.com", backend="aws").effective_https_port == 443
    assert GatewayConfiguration(domain="example.com", https_port=444).effective_https_port == 444


def test_that_there_is_no_certificate_is_recorded() -> None:
    none = load_configuration("type: gateway\ndomain: example.com\ncertificate: null\n")
    again = load_configuration(none.model_dump(mode="json", exclude_unset=True))
    assert isinstance(again, GatewayConfiguration)
    assert again.effective_certificate is None


@pytest.mark.parametrize(("written", "enabled"), [(True, True), (False, False), ({"duration": "1h"}, True)])
def test_retry(written: Any, enabled: bool) -> None:
    retry = service(retry=written).retry
    assert isinstance(retry, Retry)
    assert retry.enabled is enabled


@pytest.mark.parametrize(
    "cron",
    [
        "* * * * *",
        "*/5 0-6 1,15 JAN-MAR mon-fri",
        "0 8 * * 0",
        "59 23 31 12 6",
        "0 0 * * mon-sun",
        "1-59/2 * * * *",
    ],
)
def test_cron(cron: str) -> None:
    assert parse_cron(cron) == cron.lower()


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8",
     "a * * * *", "5-1 * * * *", "*-5 * * * *", "@daily", "* * * * * *",
     "*/0 * * * *", "mon * * * *"],
)  # fmt: skip
def test_what_is_no_cron(cron: str) -> None:
    with pytest.raises(ValueError, match="cron expression"):
        parse_cron(cron)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"commands": []}, "say what to run"),
        ({"groups": [{"commands": ["a"]}], "commands": ["b"]}, "belongs in each group"),
        ({"groups": [{"commands": ["a"]}], "nodes": 2}, "belongs in each group"),
        ({"groups": [{}]}, "say what the group runs"),
        ({"groups": [{"name": "1", "commands": ["a"]}, {"commands": ["a"]}]}, "2 groups with the name '1'"),
        ({"groups": []}, "groups: must not be empty"),
        ({"nodes": 0, "commands": ["a"]}, "at least 1"),
        ({"commands": ["  "]}, "is empty"),
    ],
)
def test_tasks_that_are_wrong(keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        load_configuration({"type": "task", **keys})


def test_development_environments() -> None:
    assert DevEnvironmentConfiguration(ide="zed", inactivity_duration="off").inactivity_duration == "off"
    windsurf = DevEnvironmentConfiguration(ide="windsurf", version="1.106.0@8951cd3")
    assert windsurf.version == "1.106.0@8951cd3"
    wrong: tuple[dict[str, str], ...] = (
        {"version": "1"},
        {"entrypoint": "sh"},
        {"ide": "emacs"},
        {"ide": "windsurf", "version": "1.106.0"},
        {"ide": "vscode", "version": "1; rm"},
    )
    for keys in wrong:
        with pytest.raises(ValidationError):
            DevEnvironmentConfiguration.model_validate(keys)


def test_a_fleet_is_of_hosts_or_of_a_cloud() -> None:
    with pytest.raises(ValidationError):
        FleetConfiguration.model_validate({"ssh_config": {"hosts": ["a"]}, "nodes": 2})


def test_written_keys_are_those_that_were_set() -> None:
    loaded = service(
        resources={"gpu": "A100:2", "memory": "1GB.."}, probes=[{"url": "/h"}], env={"A": "1"}, tags={}
    )
    assert written_keys(loaded) == {
        "image": "nginx",
        "port": 8000,
        "resources.gpu.name": ["A100"],
        "resources.gpu.count": 2,
        "resources.memory": "1GB..",
        "probes.0.url": "/h",
        "env": {"A": "1"},
        "tags": {},
    }
    assert written_keys(ServiceConfiguration(port="8001:8000", image="a", resources={})) == {
        "port": "8001:8000",
        "image": "a",
        "resources": {},
    }


def test_models_refuse_unknown_keys_without_showing_values() -> None:
    with pytest.raises(ValidationError) as caught:
        ServiceConfiguration(port=80, image="a", env={"A": ["hunter2"]}, prot=1)  # type: ignore[call-arg]
    assert "hunter2" not in str(caught.value)
    assert isinstance(Resources(), BaseModel)
