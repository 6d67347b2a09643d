"""The samples hold every key of a file; all of them load, come back from a record, and fit the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from prefect_dstack.configurations import (
    configuration_schema,
    load_configuration,
    load_profiles,
    written_keys,
)
from prefect_dstack.configurations.base import Model
from prefect_dstack.configurations.environment import Environment, RegistryCredentials
from prefect_dstack.configurations.profile import ProfileKeys, ProfilesFile, ProvisioningKeys
from prefect_dstack.configurations.run import RunConfiguration
from prefect_dstack.configurations.scalars import Range
from prefect_dstack.configurations.ssh import SshLogin
from prefect_dstack.errors import ConfigurationError

SAMPLES = sorted(Path(__file__).parent.glob("samples/*.dstack.yml"))
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.dstack.yml"))
NOT_WRITTEN = (Environment, RegistryCredentials, ProvisioningKeys, ProfileKeys, RunConfiguration, SshLogin)


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = configuration_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def identified(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[path.name for path in paths])


@identified(SAMPLES + EXAMPLES)
def test_loads_and_comes_back_from_a_record(path: Path) -> None:
    loaded = load_configuration(path, args=["--fast", "two words"])
    record = loaded.model_dump(mode="json", exclude_unset=True)
    again = load_configuration(record, directory=path.parent)
    assert again == loaded
    assert again.directory == loaded.directory == path.parent
    assert again.model_dump(mode="json", exclude_unset=True) == record
    assert written_keys(again) == written_keys(loaded)


@identified(SAMPLES + EXAMPLES)
def test_comes_back_with_all_its_defaults_too(path: Path) -> None:
    loaded = load_configuration(path)
    for mode in ("json", "python"):
        assert load_configuration(loaded.model_dump(mode=mode)) == loaded


@identified(SAMPLES + EXAMPLES)
def test_fits_the_schema_as_written_and_as_recorded(path: Path, validator: Any) -> None:
    written = yaml.safe_load(path.read_text())
    record = load_configuration(path).model_dump(mode="json", exclude_unset=True)
    for data in (written, record):
        assert [f"{list(e.absolute_path)}: {e.message[:300]}" for e in validator.iter_errors(data)] == []


@pytest.mark.parametrize(
    "wrong",
    [{"prot": 1}, {"port": {"port": 70000}}, {"port": [1]}, {"retain": 0}, {"type": "servce"},
     {"rollout": {"canary": {"wieght": 1}}}, {"spot_policy": "cheap"}, {"probes": "/"}, {"auth": "maybe"},
     {"resources": {"gpu": {"cuont": 1}}}],
)  # fmt: skip
def test_the_schema_refuses_what_the_loader_refuses(wrong: dict[str, Any], validator: Any) -> None:
    right = {"type": "service", "port": 8000, "image": "nginx"}
    assert validator.is_valid(right)
    assert not validator.is_valid({**right, **wrong})
    with pytest.raises(ConfigurationError):
        load_configuration({**right, **wrong})


@pytest.mark.parametrize(
    "key",
    ["retain", "privileged", "auth", "retry", "replicas", "max_price", "https", "spot_policy"],
)
def test_the_schema_lets_anything_be_filled_in(key: str, validator: Any) -> None:
    assert validator.is_valid(
        {"type": "service", "port": "${{ env.PORT }}", "image": "a", key: "${{ env.X }}"}
    )


def test_the_schema_speaks_no_pydantic() -> None:
    text = json.dumps(configuration_schema())
    assert not [word for word in ("ge", "gt", "le", "lt", "discriminator") if f'"{word}":' in text]


def used_fields(value: object, used: dict[type[BaseModel], set[str]]) -> None:
    if isinstance(value, BaseModel):
        for owner in type(value).__mro__:
            if issubclass(owner, Model):
                used.setdefault(owner, set()).update(value.model_fields_set)
        for field in type(value).model_fields:
            used_fields(getattr(value, field), used)
    elif isinstance(value, (tuple, list)):
        for item in value:
            used_fields(item, used)


def all_models(base: type[Model]) -> set[type[Model]]:
    return {base, *(found for child in base.__subclasses__() for found in all_models(child))}


def test_the_samples_hold_every_key() -> None:
    used: dict[type[BaseModel], set[str]] = {}
    for path in SAMPLES:
        used_fields(load_configuration(path), used)
    used_fields(ProfilesFile(profiles=load_profiles(SAMPLES[0].parent)), used)
    shared = used[ProfileKeys]
    missing = {
        f"{model.__name__}.{field}"
        for model in all_models(Model)
        if model.__module__.startswith("prefect_dstack.configurations") and not issubclass(model, Range)
        if model not in NOT_WRITTEN
        for field in set(model.model_fields) - used.get(model, set())
        if field not in shared or field not in ProfileKeys.model_fields
        if field not in used.get(RunConfiguration, set()) or field not in RunConfiguration.model_fields
    }
    # `enabled` is the long form of `retry: true`.
    assert missing - {"Retry.enabled"} == set()


def test_every_field_has_a_sentence() -> None:
    for model in all_models(Model):
        for name, field in model.model_fields.items():
            text = field.description or ""
            assert text[:1].isupper(), f"{model.__name__}.{name}"
            assert text.endswith("."), f"{model.__name__}.{name}"
            assert len(text.split()) > 2, f"{model.__name__}.{name}"
