"""Every key that dstack knows loads, with every value that its schema names, or is refused with a reason."""

from __future__ import annotations

import pytest

from prefect_dstack.configurations import load_configuration
from prefect_dstack.errors import ConfigurationError
from tests.configurations.dstack_keys import KINDS, SCHEMA, Use, uses

# What the models refuse, by definition and key, with a word of the reason.
REFUSED = {
    "DevEnvironmentConfiguration.entrypoint": "use 'init'",
    "Range_int_.max": "add 'scaling'",
    "Range_int_.min": "must have a greatest number",
    "SSHKey.private": "name a secret such as",
    "SSHKey.public": "name a secret such as",
}


def refusal_of(use: Use) -> str | None:
    try:
        loaded = load_configuration(use.configuration, environ={})
    except ConfigurationError as error:
        return str(error)
    dumped = loaded.model_dump(mode="json", exclude_unset=True)
    assert load_configuration(dumped) == loaded, use
    assert use.path[0] in dumped, use
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_loads_or_is_refused_with_a_reason(kind: str) -> None:
    found = list(uses(kind))
    assert len(found) > 30
    problems = []
    for use in found:
        refusal = refusal_of(use)
        if refusal is not None and REFUSED.get(use.key, "no reason to refuse it") not in refusal:
            problems.append(f"{use}: {refusal}")
    assert problems == []


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_is_refused_is_refused_somewhere(key: str) -> None:
    assert any(use.key == key and refusal_of(use) for kind in KINDS for use in uses(kind))


def test_there_are_no_more_kinds() -> None:
    assert set(SCHEMA["kinds"]) - set(KINDS) == {"preset"}
    with pytest.raises(ConfigurationError, match="type: presets are made by dstack itself"):
        load_configuration({"type": "preset", "base": "acme/chat"})


def test_the_schema_was_renewed_lately_enough_to_have_groups_of_services() -> None:
    assert "groups" in SCHEMA["$defs"]["ServiceConfiguration"]["properties"]
