"""Replicas with an image are containers: what they are made of, and how a real engine runs them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from docker import DockerClient
from pydantic import SecretStr

from prefect_dstack.configurations import Environment, ServiceConfiguration, load_configuration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import ImageError
from prefect_dstack.hosts.local_machine import LocalMachine
from prefect_dstack.runtimes.base import Launch, Replica, ReplicaStatus
from prefect_dstack.runtimes.container_options import container_options
from prefect_dstack.runtimes.docker import DockerRuntime
from tests.polling import wait_until
from tests.testbed.engine import LocalEngine
from tests.testbed.images import load_image
from tests.workloads import spec_of

MACHINE = LocalMachine()
STAMP = Stamp(service="hello", revision=3, replica=0, flow_run="run")
APP = ["exec python3 /app/app.py 8000"]


def launch_of(
    *commands: str,
    environment: Environment | None = None,
    stamp: Stamp = STAMP,
    gpu_devices: tuple[str, ...] = (),
    directory: Path = Path("/work"),
    **keys: Any,
) -> Launch:
    configuration = load_configuration(
        {
            "type": "service",
            "port": 8000,
            "image": "testbed/app:1",
            **({"commands": list(commands)} if commands else {}),
            **keys,
        },
        name=stamp.service,
        directory=directory,
    )
    assert isinstance(configuration, ServiceConfiguration)
    return Launch(stamp=stamp, spec=spec_of(configuration, directory, environment), gpu_devices=gpu_devices)


class TestCreation:
    """What a container is made of, without an engine."""

    engine = cast(
        "DockerClient",
        SimpleNamespace(
            info=lambda: {"NCPU": 4},
            images=SimpleNamespace(
                get=lambda _: SimpleNamespace(attrs={"Config": {"Entrypoint": ["own"], "Cmd": ["default"]}})
            ),
        ),
    )

    def made(self, *commands: str, **options: Any) -> dict[str, Any]:
        launch = launch_of(*commands, **options)
        return container_options(self.engine, MACHINE, launch, dict.fromkeys(launch.spec.ports, 20001))

    def test_publishes_the_port_on_loopback_only(self) -> None:
        assert self.made(port="80:9000")["ports"] == {"9000/tcp": ("127.0.0.1", 20001)}

    def test_is_labelled_in_the_call_that_creates_it(self) -> None:
        made = self.made(resources={"cpu": "2..", "memory": "4GB.."}, tags={"team": "a", "cost": "b"})

        assert made["name"] == "prefect-dstack-hello-3-0"
        assert made["labels"] == {
            "team": "a",
            "cost": "b",
            "prefect-dstack.service": "hello",
            "prefect-dstack.revision": "3",
            "prefect-dstack.replica": "0",
            "prefect-dstack.flow-run": "run",
            "prefect-dstack.address": "127.0.0.1",
            "prefect-dstack.port": "8000",
            "prefect-dstack.ports": "8000",
            "prefect-dstack.cpus": "2",
            "prefect-dstack.memory-gb": "4",
            "prefect-dstack.gpu-devices": "",
        }

    def test_survives_crashes_and_reboots_with_bounded_logs_and_few_rights(self) -> None:
        made = self.made()

        assert made["restart_policy"] == {"Name": "unless-stopped"}
        assert made["log_config"].config == {"max-size": "10m", "max-file": "3"}
        assert made["security_opt"] == ["no-new-privileges:true"]
        assert (made["privileged"], made["init"]) == (False, True)

    def test_runs_the_image_as_it_is_where_nothing_is_said(self) -> None:
        made = self.made()

        assert (made["entrypoint"], made["command"], made["user"], made["working_dir"]) == (None,) * 4

    def test_runs_commands_by_a_shell_instead_of_the_entry_point(self) -> None:
        made = self.made("cd /model", "serve --port 8000")

        assert made["entrypoint"] == ["/bin/sh", "-c"]
        assert made["command"] == ["set -e\ncd /model\nserve --port 8000"]

    def test_runs_the_entry_point_that_is_given(self) -> None:
        assert self.made(entrypoint="python -m 'my app'")["entrypoint"] == ["python", "-m", "my app"]

    def test_starts_an_engine_of_its_own_where_docker_is_asked_for(self) -> None:
        made = self.made("docker run hello", image=None, docker=True, fleets=["lab"])

        assert (made["privileged"], made["entrypoint"]) == (True, ["/bin/bash", "-c"])
        assert made["command"] == ["set -e\nstart-dockerd\ndocker run hello"]
        assert made["volumes"] == []

    def test_makes_a_virtual_environment_in_the_default_image(self) -> None:
        made = self.made("pip list", image=None, python="3.12", fleets=["lab"])

        assert made["entrypoint"] == ["/bin/bash", "-c"]
        (script,) = made["command"]
        assert 'uv venv -q --prompt "$DSTACK_RUN_NAME" -p 3.12 --seed' in script
        assert script.endswith('PATH="$VIRTUAL_ENV/bin:$PATH"\npip list')

    def test_tells_it_who_it_is_and_lets_env_have_the_last_word(self) -> None:
        environment = self.made(environment=Environment(plain={"PORT": "9", "A": "b"}))["environment"]

        assert environment == {
            "DSTACK_RUN_NAME": "hello",
            "DSTACK_REPLICA_NUM": "0",
            "DSTACK_REVISION": "3",
            "DSTACK_SERVICE_PORT": "8000",
            "PORT": "9",
            "PYTHONUNBUFFERED": "1",
            "A": "b",
        }

    def test_has_no_secret_in_it(self) -> None:
        environment = Environment(secret={"TOKEN": SecretStr("hunter2")})

        made = self.made(environment=environment)

        assert "hunter2" not in repr(made)
        assert made["entrypoint"][:2] == ["/bin/sh", "-c"]
        assert made["command"] == ["own", "default"]

    @pytest.mark.parametrize(
        ("resources", "limits"),
        [
            ({}, (None, None, None)),
            ({"cpu": 2, "memory": "8GB"}, (2 * 10**9, 8 * 2**30, None)),
            ({"cpu": "2..", "memory": "8GB.."}, (None, None, None)),
            ({"cpu": "1..3", "memory": "1GB..1.5GB"}, (3 * 10**9, 3 * 2**29, None)),
            ({"cpu": "1..64"}, (4 * 10**9, None, None)),
            ({"shm_size": "16GB"}, (None, None, 16 * 2**30)),
        ],
    )
    def test_limits_what_has_an_upper_bound(
        self, resources: dict[str, Any], limits: tuple[int | None, ...]
    ) -> None:
        made = self.made(resources=resources)

        assert (made["nano_cpus"], made["mem_limit"], made["shm_size"]) == limits

    @pytest.mark.parametrize(
        ("gpu", "devices", "request_of"),
        [
            (None, (), None),
            (0, (), None),
            ("0..1", (), None),
            ("..0", (), None),
            (1, (), {"Count": -1}),
            ("A100:2", (), {"Count": -1}),
            ({"total_memory": "160GB"}, (), {"Count": -1}),
            ({"total_memory": "160GB"}, ("GPU-a", "GPU-b"), {"DeviceIDs": ["GPU-a", "GPU-b"]}),
            ("0..1", ("GPU-a",), {"DeviceIDs": ["GPU-a"]}),
            (2, ("GPU-a", "GPU-b"), {"DeviceIDs": ["GPU-a", "GPU-b"]}),
        ],
    )
    def test_asks_for_the_gpus(
        self, gpu: Any, devices: tuple[str, ...], request_of: dict[str, Any] | None
    ) -> None:
        resources = {} if gpu is None else {"gpu": gpu}
        asked = self.made(resources=resources, gpu_devices=devices)["device_requests"]

        if request_of is None:
            assert asked is None
        else:
            (request,) = asked
            assert {key: request[key] for key in request_of} == request_of
            assert request["Capabilities"] == [["gpu"]]

    def test_mounts_directories_but_not_optional_ones_that_are_missing(self, tmp_path: Path) -> None:
        volumes = [
            "/data:/data",
            {"instance_path": str(tmp_path / "missing"), "path": "/a", "optional": True},
            {"instance_path": str(tmp_path), "path": "/b", "optional": True},
        ]

        assert self.made(volumes=volumes)["volumes"] == ["/data:/data", f"{tmp_path}:/b"]

    def test_mounts_for_reading_only_and_from_the_home_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "there").mkdir()
        volumes: list[Any] = [
            "/data:/data:ro",
            "~/cache:/cache",
            "~:/home/me:ro",
            {"instance_path": "~/there", "path": "/a", "optional": True, "read_only": True},
            {"instance_path": "~/missing", "path": "/b", "optional": True},
        ]

        assert self.made(volumes=volumes)["volumes"] == [
            "/data:/data:ro",
            f"{tmp_path}/cache:/cache",
            f"{tmp_path}:/home/me:ro",
            f"{tmp_path}/there:/a:ro",
        ]


@pytest.fixture
def engine(docker_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerClient]:
    """A real engine that has the application, and nothing of ours after the test."""
    monkeypatch.setenv("DOCKER_HOST", docker_engine.url)
    load_image(docker_engine, "app")
    with docker_engine.docker() as client:
        yield client
        left = client.containers.list(all=True, filters={"label": "prefect-dstack.service"})
        names = [container.name for container in left]
        for container in left:
            container.remove(force=True, v=True)
        assert names == []


@pytest.fixture
def start(engine: DockerClient) -> Iterator[Callable[..., Replica]]:
    """Starts replicas, and removes them at the end."""
    runtime = DockerRuntime()
    started: list[Replica] = []

    def start(*commands: str, **options: Any) -> Replica:
        started.append(runtime.launch(MACHINE, launch_of(*commands, **options), lambda _: None))
        return started[-1]

    yield start
    for replica in started:
        runtime.remove(MACHINE, replica, grace=0)


def answer_of(replica: Replica, path: str = "/") -> Any:
    """What a replica answers, as soon as it does."""

    def answer() -> Any:
        with contextlib.suppress(OSError):
            url = f"http://{replica.address}:{replica.port}{path}"
            with urllib.request.urlopen(url, timeout=5) as response:
                return json.load(response)
        return None

    return wait_until(answer, 30, f"{replica.name} answers")


def status_of(replica: Replica) -> ReplicaStatus:
    return DockerRuntime().status(MACHINE, replica)


def output_of(replica: Replica, lines: int = 1) -> list[str]:
    """What a replica wrote, once that is so many lines."""

    def output() -> list[str] | None:
        found = list(DockerRuntime().logs(MACHINE, replica))
        return found if len(found) >= lines else None

    return wait_until(output, 20, f"{lines} lines of {replica.name}") or []


@pytest.mark.docker
class TestLaunch:
    def test_gives_a_container_that_answers_here(
        self, engine: DockerClient, start: Callable[..., Replica]
    ) -> None:
        replica = start(*APP, environment=Environment(plain={"SERVICE": "x", "VERSION": "7"}))

        assert (replica.name, replica.runtime, replica.address) == ("hello-3-0", "docker", "127.0.0.1")
        answer = answer_of(replica)
        assert (answer["service"], answer["version"], answer["hostname"]) == ("x", "7", "hello-3-0")
        assert list(DockerRuntime().replicas(MACHINE)) == [replica]

    def test_of_an_image_that_knows_what_to_run(self, start: Callable[..., Replica]) -> None:
        assert answer_of(start(environment=Environment(plain={"VERSION": "own"})))["version"] == "own"

    def test_again_finds_the_first(self, start: Callable[..., Replica]) -> None:
        assert start(*APP) == start(*APP, stamp=STAMP.model_copy(update={"flow_run": "another"}))

    def test_replaces_what_an_attempt_has_left_half_done(
        self, engine: DockerClient, start: Callable[..., Replica]
    ) -> None:
        engine.containers.create(
            "testbed/app:1", name="prefect-dstack-hello-3-0", labels=STAMP.labels(), ports={"8000/tcp": None}
        )

        assert answer_of(start(*APP))

    def test_applies_user_directory_volumes_and_limits(
        self, engine: DockerClient, start: Callable[..., Replica], tmp_path: Path
    ) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "file").write_text("from here")
        replica = start(
            "id -u",
            "pwd",
            "cat /data/file",
            "echo",
            "df -k /dev/shm | awk 'END {print $2}'",
            "cat /sys/fs/cgroup/memory.max 2>/dev/null || echo none",
            "exec sleep 300",
            user="1234",
            working_dir="/app",
            volumes=[f"{tmp_path}/data:/data", f"{tmp_path}/made:/made"],
            resources={"memory": "256MB", "cpu": "1..64", "shm_size": "128MB"},
        )

        uid, directory, file, shm, _memory = output_of(replica, 5)

        assert (uid, directory, file, shm) == ("1234", "/app", "from here", str(128 * 1024))
        limits = engine.containers.get(replica.id).attrs["HostConfig"]
        assert limits["Memory"] == 256 * 2**20
        assert limits["NanoCpus"] == engine.info()["NCPU"] * 10**9
        assert (tmp_path / "made").is_dir()

    def test_uses_the_entry_point_that_is_given(self, start: Callable[..., Replica]) -> None:
        replica = start("echo $0 $1", entrypoint="sh -c")

        assert output_of(replica)[0].startswith("sh")

    def test_cannot_write_what_it_may_only_read(self, start: Callable[..., Replica], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("from here")
        replica = start(
            "cat /data/file; echo",
            "touch /data/mine 2>/dev/null || echo refused",
            "exec sleep 300",
            volumes=[f"{tmp_path}:/data:ro"],
        )

        assert output_of(replica, 2) == ["from here", "refused"]
        assert not (tmp_path / "mine").exists()

    @pytest.mark.parametrize(("user", "home"), [(None, "/root"), ("nobody", None), ("0", "/root")])
    def test_brings_files_to_the_home_directory_of_its_user(
        self, start: Callable[..., Replica], tmp_path: Path, user: str | None, home: str | None
    ) -> None:
        (tmp_path / "netrc").write_text("machine a\n")
        find = "eval echo ~$(id -un) >&2; cat $(eval echo ~$(id -un))/.netrc"
        replica = start(
            find,
            "exec sleep 300",
            files=["netrc:~/.netrc"],
            directory=tmp_path,
            **({"user": user} if user else {}),
        )

        assert "machine a" in output_of(replica, 2)
        if home is not None:
            assert home in output_of(replica, 2)

    def test_brings_files(self, start: Callable[..., Replica], tmp_path: Path) -> None:
        (tmp_path / "greeting.txt").write_text("hi\n")
        replica = start(
            "cat greeting.txt",
            "exec sleep 300",
            files=["greeting.txt"],
            working_dir="/app",
            directory=tmp_path,
        )

        assert output_of(replica) == ["hi"]


@pytest.mark.docker
class TestSecrets:
    @pytest.mark.parametrize("keys", [{}, {"user": "1234"}, {"entrypoint": "/bin/sh -c"}])
    def test_reach_the_program_and_not_the_engine(
        self, engine: DockerClient, start: Callable[..., Replica], keys: dict[str, Any]
    ) -> None:
        secret = "hunter2 'quoted' \"twice\" $HOME `id`\nand a second line"
        replica = start(
            'echo "${#TOKEN} $PLAIN"',
            'printf "%s" "$TOKEN" | md5sum',
            "exec sleep 300",
            environment=Environment(plain={"PLAIN": "seen"}, secret={"TOKEN": SecretStr(secret)}),
            **keys,
        )

        lines = output_of(replica, 2)
        assert lines[0] == f"{len(secret)} seen"
        assert lines[1].split()[0] == hashlib.md5(secret.encode()).hexdigest()
        inspected = json.dumps(engine.api.inspect_container(replica.id))
        assert "hunter2" not in inspected
        assert "hunter2" not in json.dumps(engine.containers.get(replica.id).top())

    def test_reach_what_the_image_itself_runs(self, start: Callable[..., Replica]) -> None:
        environment = Environment(secret={"VERSION": SecretStr("secret version")})

        assert answer_of(start(environment=environment))["version"] == "secret version"

    def test_need_a_shell_in_the_image_and_say_so(self, engine: DockerClient, tmp_path: Path) -> None:
        """Such as images made from nothing but one program."""
        (tmp_path / "app").write_bytes(b"\x7fELF, or so")
        with tarfile.open(tmp_path / "image.tar", "w") as archive:
            archive.add(tmp_path / "app", "app")
        engine.api.import_image(str(tmp_path / "image.tar"), repository="testbed/no-shell", tag="1")
        environment = Environment(secret={"TOKEN": SecretStr("x")})

        with pytest.raises(ImageError, match=r"testbed/no-shell:1: the image has no /bin/sh, which secrets"):
            DockerRuntime().launch(
                MACHINE, launch_of(image="testbed/no-shell:1", environment=environment), lambda _: None
            )


@pytest.mark.docker
class TestImages:
    def test_that_do_not_exist_are_named(self, engine: DockerClient) -> None:
        with pytest.raises(ImageError, match=r"registry\.invalid/none:1: cannot be pulled on this machine"):
            DockerRuntime().launch(MACHINE, launch_of(image="registry.invalid/none:1"), lambda _: None)

    def test_without_the_shell_that_commands_need_are_named(
        self, engine: DockerClient, tmp_path: Path
    ) -> None:
        with tarfile.open(tmp_path / "image.tar", "w"):
            pass
        engine.api.import_image(str(tmp_path / "image.tar"), repository="testbed/empty", tag="1")

        with pytest.raises(ImageError, match=r"testbed/empty:1: the image has no /bin/sh, which 'commands'"):
            DockerRuntime().launch(MACHINE, launch_of("app", image="testbed/empty:1"), lambda _: None)


@pytest.mark.docker
class TestStatus:
    def test_comes_back_after_a_crash(
        self, docker_engine: LocalEngine, start: Callable[..., Replica]
    ) -> None:
        replica = start(*APP)
        answer_of(replica)

        docker_engine.kill_container("prefect-dstack-hello-3-0")

        wait_until(lambda: status_of(replica).restarts >= 1, 30, "it was restarted")
        assert answer_of(replica)
        assert status_of(replica).state == "running"

    def test_tells_that_it_ran_out_of_memory(self, start: Callable[..., Replica]) -> None:
        replica = start(
            "python3 -c 'a = bytearray(200 * 2**20); print(len(a))'", resources={"memory": "32MB"}
        )

        def killed() -> ReplicaStatus | None:
            status = status_of(replica)
            return status if status.exit_code == 137 else None

        status = wait_until(killed, 30, "it is killed")

        assert status is not None
        assert status.out_of_memory

    def test_tells_how_it_ended(self, start: Callable[..., Replica]) -> None:
        replica = start("exit 3")

        def restarting() -> ReplicaStatus | None:
            status = status_of(replica)
            return status if status.state == "restarting" else None

        status = wait_until(restarting, 20, "it waits for its restart")

        assert status is not None
        assert status.exit_code == 3

    def test_of_what_was_removed_is_gone(self, engine: DockerClient, start: Callable[..., Replica]) -> None:
        replica = start(*APP)

        engine.containers.get(replica.id).remove(force=True)

        assert status_of(replica) == ReplicaStatus(state="gone")


@pytest.mark.docker
class TestLogs:
    def test_has_both_streams_and_the_last_lines(self, start: Callable[..., Replica]) -> None:
        replica = start("echo error >&2", "seq 1 20", "exec sleep 300")
        lines = output_of(replica, 21)

        assert sorted(lines) == sorted([*map(str, range(1, 21)), "error"])
        assert list(DockerRuntime().logs(MACHINE, replica, tail=2)) == lines[-2:]

    def test_followed_ends_with_the_container(
        self, engine: DockerClient, start: Callable[..., Replica]
    ) -> None:
        replica = start("trap 'echo bye; exit 0' TERM", "echo hi", "while :; do sleep 0.1; done")
        lines = DockerRuntime().logs(MACHINE, replica, follow=True)
        assert next(lines) == "hi"

        engine.containers.get(replica.id).stop(timeout=5)

        assert "bye" in list(lines)


@pytest.mark.docker
class TestRemove:
    def test_lets_it_finish_and_leaves_nothing(
        self, engine: DockerClient, start: Callable[..., Replica], tmp_path: Path
    ) -> None:
        replica = start(
            "trap 'echo done > /out/finished; exit 0' TERM",
            "echo ready",
            "while :; do sleep 0.1; done",
            volumes=[f"{tmp_path}:/out"],
        )
        output_of(replica)

        DockerRuntime().remove(MACHINE, replica, grace=10)

        assert (tmp_path / "finished").read_text() == "done\n"
        assert list(DockerRuntime().replicas(MACHINE)) == []
        DockerRuntime().remove(MACHINE, replica, grace=10)

    def test_does_not_wait_longer_than_it_must(self, start: Callable[..., Replica]) -> None:
        replica = start("trap '' TERM", "echo ready", "while :; do sleep 0.1; done")
        output_of(replica)

        DockerRuntime().remove(MACHINE, replica, grace=1)

        assert status_of(replica).state == "gone"
