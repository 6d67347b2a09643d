"""Which changes take new replicas, which only the gateway's attention, and what digests give away."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from prefect_dstack.configurations import (
    Environment,
    RegistryCredentials,
    ServiceConfiguration,
    load_configuration,
)
from prefect_dstack.domain.record import Revision, ServiceRecord
from prefect_dstack.domain.revision import (
    SETTINGS,
    changes_of,
    compared,
    difference,
    moved,
    settings_digest,
    value_digests,
    workload_digest,
    written,
)

BASE: dict[str, Any] = {"type": "service", "port": 8000, "image": "app", "commands": ["run"]}


def service(**keys: Any) -> ServiceConfiguration:
    mapping = {**BASE, **keys}
    configuration = load_configuration(
        {key: value for key, value in mapping.items() if value is not None}, name=mapping.get("name", "hello")
    )
    assert isinstance(configuration, ServiceConfiguration)
    return configuration


def workload(
    configuration: ServiceConfiguration,
    *,
    environment: Environment | None = None,
    registry: RegistryCredentials | None = None,
    directory: str = "/work",
    salt: str = "salt",
) -> str:
    return workload_digest(configuration, environment or Environment(), registry, directory, salt)


def changes(**keys: Any) -> tuple[bool, bool]:
    """Whether some keys change the workload, and the settings."""
    before, after = service(), service(**keys)
    return (
        workload(before) != workload(after),
        settings_digest(before, "salt") != settings_digest(after, "salt"),
    )


class TestWorkload:
    @pytest.mark.parametrize(
        "keys",
        [
            {"image": "app:2"},
            {"commands": ["run", "more"]},
            {"commands": []},
            {"entrypoint": "other"},
            {"env": {"LEVEL": "debug"}},
            {"user": "1000"},
            {"working_dir": "/app"},
            {"privileged": True},
            {"shell": "bash"},
            {"files": ["app.py"]},
            {"volumes": ["/data:/data"]},
            {"resources": {"memory": "8GB"}},
            {"port": 9000},
            {"backends": ["local"]},
            {"spot_policy": "auto"},
            {"max_price": 1},
            {"tags": {"team": "a"}},
            {"model_asset": "s3://models/shop.onnx"},
        ],
    )
    def test_changes_with_what_goes_into_replicas(self, keys: dict[str, Any]) -> None:
        assert changes(**keys) == (True, False)

    @pytest.mark.parametrize(
        "keys",
        [
            {"access_log": True},
            {"auth": True},
            {"budget": 2.5},
            {"https": False},
            {"probes": [{"type": "http", "url": "/health"}]},
            {"model": "llama"},
            {"domain": "hello.example.com"},
            {"domains": ["hello.example.com"]},
            {"path_prefix": "/hello"},
            {"strip_prefix": False},
            {"rate_limits": [{"rps": 5}]},
            {"cors": {"allow_origins": "*"}},
            {"client_max_body_size": "1GB"},
            {"timeouts": {"request": "1h"}},
            {"max_concurrency": 4},
            {"queue_timeout": "10s"},
            {"restart_after": "1m", "probes": [{"type": "http", "url": "/health"}]},
            {"rollout": {"max_surge": 2}},
            {"retain": 3},
            {"stop_duration": "10s"},
            {"gateway": "main"},
            {"port": "8001:8000"},
        ],
    )
    def test_stays_when_only_the_gateway_or_the_plan_changes(self, keys: dict[str, Any]) -> None:
        assert changes(**keys) == (False, True)

    def test_neither_changes_with_the_wanted_number_of_replicas(self) -> None:
        assert changes(replicas=3) == (False, False)

    @pytest.mark.parametrize(
        "keys",
        [
            {"replicas": "1..8", "scaling": {"metric": "rps", "target": 10}},
            {"replicas": "1..4", "scaling": {"metric": "rps", "target": 20}},
            {"replicas": "1..4", "scaling": {"metric": "concurrency", "target": 10}},
            {"replicas": 2},
        ],
    )
    def test_the_terms_of_scaling_are_settings(self, keys: dict[str, Any]) -> None:
        before = service(replicas="1..4", scaling={"metric": "rps", "target": 10})
        after = service(**keys)

        assert workload(before) == workload(after)
        assert settings_digest(before, "salt") != settings_digest(after, "salt")

    def test_says_of_every_key_of_a_service_to_which_part_it_belongs(self) -> None:
        """A key that is misspelled in the list of settings would take new replicas for nothing."""
        assert set(ServiceConfiguration.model_fields) >= SETTINGS

    def test_changes_with_the_value_of_a_secret_behind_the_same_reference(self) -> None:
        configuration = service(env={"TOKEN": "${{ secrets.TOKEN }}"})
        first = Environment(secret={"TOKEN": SecretStr("one")})
        second = Environment(secret={"TOKEN": SecretStr("two")})

        assert workload(configuration, environment=first) != workload(configuration, environment=second)
        assert workload(configuration, environment=first) == workload(
            configuration, environment=first.model_copy()
        )

    def test_changes_with_the_password_of_the_registry(self) -> None:
        one, two = (RegistryCredentials(password=SecretStr(password)) for password in ("one", "two"))

        assert workload(service(), registry=one) != workload(service(), registry=two)

    def test_of_a_process_changes_with_its_directory_that_of_a_container_does_not(self) -> None:
        process = service(image=None)

        assert workload(process, directory="/a") != workload(process, directory="/b")
        assert workload(service(), directory="/a") == workload(service(), directory="/b")

    def test_does_not_depend_on_the_order_of_keys(self) -> None:
        one = service(env={"A": "1", "B": "2"})
        other = service(env={"B": "2", "A": "1"})

        assert workload(one) == workload(other)
        assert settings_digest(one, "salt") == settings_digest(other, "salt")

    def test_is_the_same_for_the_same_service_by_another_name_of_its_file(self, tmp_path: Path) -> None:
        text = "type: service\nname: hello\nport: 8000\nimage: app\ncommands:\n  - run\n"
        (tmp_path / "a.dstack.yml").write_text(text)
        (tmp_path / "b.dstack.yml").write_text("# a comment\n" + text)
        one, other = (load_configuration(tmp_path / name) for name in ("a.dstack.yml", "b.dstack.yml"))
        assert isinstance(one, ServiceConfiguration)
        assert isinstance(other, ServiceConfiguration)

        assert workload(one) == workload(other) == workload(service())

    def test_changes_with_the_content_of_the_model(self) -> None:
        def digest(**known: str) -> str:
            return workload_digest(service(), Environment(), None, "/work", "salt", **known)

        assert digest(model_version="one") != digest(model_version="two")
        # Those that earlier versions have recorded still count.
        assert digest(model_version="") == digest() == workload(service())
        assert digest(bundle="one") != digest(model_version="one")


def revision(**keys: Any) -> Revision:
    known: dict[str, Any] = {
        "number": 1,
        "configuration": {"port": 8000},
        "directory": "/work",
        "workload": "",
        "settings": "",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "replicas_of": 1,
    }
    return Revision(**{**known, **keys})


class TestComparison:
    def test_names_each_part_that_there_is(self) -> None:
        before = revision(bundle="a" * 64, model_version="sha256:" + "b" * 64)
        after = revision(bundle="a" * 64, model_version="c" * 64, values={"env.TOKEN": "d"})

        assert compared(before, after) == [
            "configuration unchanged",
            "secret values changed",
            "files unchanged (aaaaaaaaaaaa)",
            "model changed (bbbbbbbbbbbb → cccccccccccc)",
        ]
        assert compared(revision(), revision(configuration={"port": 1})) == ["configuration changed"]

    def test_says_of_what_was_not_known_that_it_was_not(self) -> None:
        assert moved("", "abc") == "changed (not known → abc)"

    def test_shows_a_new_model_in_the_history(self) -> None:
        lines = difference("hello", revision(), revision(model_version="abc")).splitlines()

        assert lines == ["~model_asset: its content changed"]


class TestSecrecy:
    @given(secret=st.text(max_size=20))
    def test_a_digest_tells_nothing_without_the_salt_of_its_service(self, secret: str) -> None:
        environment = Environment(secret={"TOKEN": SecretStr(secret)})

        digests = {workload(service(), environment=environment, salt=salt) for salt in ("one", "two")}

        assert len(digests) == 2
        assert all(len(digest) == 64 for digest in digests)

    def test_a_written_configuration_holds_references_only(self) -> None:
        configuration = service(
            env={"TOKEN": "${{ secrets.TOKEN }}", "FROM_DEPLOYER": None},
            registry_auth={"username": "me", "password": "${{ secrets.REGISTRY }}"},
        )

        record = written(configuration)

        assert record["env"] == {"TOKEN": "${{ secrets.TOKEN }}", "FROM_DEPLOYER": None}
        assert record["registry_auth"]["password"] == "${{ secrets.REGISTRY }}"

    def test_a_written_configuration_loads_as_the_same(self) -> None:
        configuration = service(
            env={"PRICE": "$${{ literal }}"},
            probes=[{"type": "http", "url": "/health", "interval": "1s"}],
            resources={"memory": "1.5GB..", "gpu": "A100:2"},
            port="8001:8000",
        )

        again = load_configuration(written(configuration), name="hello")

        assert again == configuration
        assert isinstance(again, ServiceConfiguration)
        assert workload(again) == workload(configuration)
        assert settings_digest(again, "salt") == settings_digest(configuration, "salt")


class TestChanges:
    def test_the_first_revision_changed_nothing(self) -> None:
        record = recorded(service())

        assert changes_of(record, record.revisions[0]) == ""

    def test_they_are_a_diff_to_the_revision_before(self) -> None:
        record = recorded(service(), service(commands=["run", "more"]))

        lines = changes_of(record, record.revisions[-1]).splitlines()

        assert lines[:2] == ["--- hello@1", "+++ hello@2"]
        assert "+- more" in lines

    def test_a_revision_that_failed_is_passed_over(self) -> None:
        record = recorded(service(), service(image="broken"), service(), outcomes={2: "failed"})

        assert changes_of(record, record.revisions[-1]) == ""

    def test_values_and_files_are_named_and_not_shown(self) -> None:
        one, two = (Environment(secret={"TOKEN": SecretStr(value)}) for value in ("one", "two"))
        record = recorded(
            service(),
            service(),
            values={1: value_digests(one, None, "salt"), 2: value_digests(two, None, "salt")},
            bundles={1: "a", 2: "b"},
        )

        assert changes_of(record, record.revisions[-1]).splitlines() == [
            "~env.TOKEN: its value changed",
            "~files: their content changed",
        ]

    def test_the_password_of_a_registry_is_such_a_value(self) -> None:
        password = RegistryCredentials(password=SecretStr("one"))

        assert list(value_digests(Environment(), password, "salt")) == ["registry_auth.password"]


def recorded(
    *configurations: ServiceConfiguration,
    outcomes: dict[int, str] | None = None,
    values: dict[int, dict[str, str]] | None = None,
    bundles: dict[int, str] | None = None,
) -> ServiceRecord:
    revisions = [
        Revision.model_validate(
            {
                "number": number,
                "configuration": written(configuration),
                "directory": "/work",
                "workload": "w",
                "settings": "s",
                "created_at": "2026-01-01T00:00:00Z",
                "replicas_of": number,
                "outcome": (outcomes or {}).get(number, "superseded"),
                "values": (values or {}).get(number, {}),
                "bundle": (bundles or {}).get(number, ""),
            }
        )
        for number, configuration in enumerate(configurations, 1)
    ]
    return ServiceRecord(name="hello", salt="salt", revisions=revisions)
