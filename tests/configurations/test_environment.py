"""Environment variables and credentials: what is plain, what is secret, and what is missing."""

from __future__ import annotations

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
    resolve_environment,
    resolve_gateway,
    resolve_registry_auth,
)
from prefect_dstack.errors import ConfigurationError, NotFoundError

SECRETS = {
    "TOKEN": "hunter2",
    "USER": "me",
    "GW": " gw.example.com\n",
    "BAD": "a b\nhttp-request deny",
    "NUL": "a\0b",
}


def lookup(name: str) -> str:
    if name not in SECRETS:
        raise NotFoundError(f"no secret {name}")
    return SECRETS[name]


def service(**keys: Any) -> ServiceConfiguration:
    loaded = load_configuration({"type": "service", "port": 80, "image": "a", **keys}, environ={})
    assert isinstance(loaded, ServiceConfiguration)
    return loaded


@pytest.mark.parametrize(
    "env",
    [
        {"A": "1", "B": 2, "C": "x=y", "D": "", "E": None, "F": True, "G": "${{ secrets.TOKEN }}"},
        ["A=1", "B=2", "C=x=y", "D=", "E", "F=true", "G=${{ secrets.TOKEN }}"],
    ],
)
def test_a_mapping_and_a_list_say_the_same(env: Any) -> None:
    resolved = resolve_environment(service(env=env), lookup, {"E": "deployed"})
    assert resolved.plain == {"A": "1", "B": "2", "C": "x=y", "D": "", "F": "true"}
    assert {name: value.get_secret_value() for name, value in resolved.secret.items()} == {
        "E": "deployed", "G": "hunter2",
    }  # fmt: skip
    assert resolved.reveal() == {**resolved.plain, "E": "deployed", "G": "hunter2"}


def test_values_are_texts_as_they_were_typed() -> None:
    loaded = load_configuration(
        "type: task\nimage: a\nenv:\n"
        "  V: 1.10\n  X: 0x1F\n  T: True\n  Y: yes\n  D: 2024-01-02\n  P: 8001:8000\n"
    )
    assert resolve_environment(loaded, lookup, {}).plain == {
        "V": "1.10", "X": "0x1F", "T": "true", "Y": "yes", "D": "2024-01-02", "P": "8001:8000",
    }  # fmt: skip


def test_nothing_secret_is_in_a_repr() -> None:
    loaded = service(
        env={"A": "${{ secrets.TOKEN }}", "B": "literal-token"}, registry_auth={"password": "literal-pw"}
    )
    resolved = resolve_environment(loaded, lookup, {})
    credentials = resolve_registry_auth(loaded, lookup)
    shown = f"{resolved!r} {resolved} {credentials!r} {loaded!r} {loaded}"
    assert "hunter2" not in shown
    assert "literal" not in shown.replace("'B': 'literal-token'", "")


def test_a_bare_name_that_is_not_set_says_what_to_do() -> None:
    loaded = load_configuration("type: task\nimage: a\nenv:\n  HF_TOKEN:\n")
    with pytest.raises(ConfigurationError) as caught:
        resolve_environment(loaded, lookup, {})
    assert str(caught.value) == (
        "<text>:4: env.HF_TOKEN: has no value and is not in the environment; "
        "run 'export HF_TOKEN=…', or give it one"
    )


def test_secrets_are_taken_out_of_what_a_program_has_written() -> None:
    secret = {"TOKEN": "s3cret-value", "KEY": "-----BEGIN\n  line of a key\n", "ON": "1"}
    environment = Environment(secret={name: SecretStr(value) for name, value in secret.items()})
    assert environment.hide("got s3cret-value 1 time, then line of a key") == "got *** 1 time, then ***"


def test_an_unknown_secret_is_told_with_the_place_that_asks_for_it() -> None:
    loaded = load_configuration("type: task\nimage: a\nenv:\n  A: ${{ secrets.NONE }}\n")
    with pytest.raises(ConfigurationError) as caught:
        resolve_environment(loaded, lookup, {})
    assert str(caught.value) == "<text>:4: env.A: no secret NONE"


def test_a_secret_that_no_environment_can_hold_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigurationError, match="NUL character"):
        resolve_environment(service(env={"A": "${{ secrets.NUL }}"}), lookup, {})


def test_registry_credentials() -> None:
    assert resolve_registry_auth(service(), lookup) is None
    loaded = service(registry_auth={"username": "${{ secrets.USER }}", "password": "x-${{ secrets.TOKEN }}"})
    credentials = resolve_registry_auth(loaded, lookup)
    assert isinstance(credentials, RegistryCredentials)
    assert (credentials.username, credentials.password.get_secret_value()) == ("me", "x-hunter2")


@pytest.mark.parametrize(
    ("written", "resolved"),
    [(None, None), (True, True), (False, False), ("yes", True), ("off", False), ("main", "main"),
     ("a/main", "a/main"), ("23.100.30.60", "23.100.30.60"), ("my.domain.com", "my.domain.com"),
     ("${{ secrets.GW }}", "gw.example.com"),
     ({"project": "a", "name": "main"}, "a/main")],
)  # fmt: skip
def test_gateways(written: Any, resolved: Any) -> None:
    assert resolve_gateway(service(gateway=written), lookup) == resolved


def test_the_secret_of_a_gateway_is_checked_as_if_it_had_been_written() -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_gateway(service(gateway="${{ secrets.BAD }}"), lookup)
    assert str(caught.value) == (
        "<mapping>: gateway: its secret holds neither the name nor the address of a gateway"
    )


@given(
    st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,6}", fullmatch=True), st.text(max_size=12), max_size=4)
)
def test_any_plain_text_arrives_as_it_was(env: dict[str, str]) -> None:
    escaped = {name: value.replace("${{", "$${{").replace("\0", "") for name, value in env.items()}
    loaded = service(env=escaped)
    assert resolve_environment(loaded, lookup, {}).plain == {n: v.replace("\0", "") for n, v in env.items()}
