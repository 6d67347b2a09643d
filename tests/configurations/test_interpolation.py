"""References: split, filled in, kept where a secret may stand, refused elsewhere."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefect_dstack.configurations import ServiceConfiguration, load_configuration, resolve_text, secret_names
from prefect_dstack.configurations.interpolation import (
    InterpolationError,
    Part,
    Reference,
    escape,
    parse,
    render,
    secrets_of,
)
from prefect_dstack.errors import ConfigurationError

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
REFERENCES = st.builds(Reference, st.sampled_from(["secrets", "env"]), NAMES)
TEXTS = st.lists(
    st.sampled_from(["$", "{", "}", "${{", "}}", "$${{", " ", "a", "env.X", "\n", "secrets."]), max_size=8
).map("".join)


def service(**keys: object) -> ServiceConfiguration:
    source = {"type": "service", "port": 8000, "image": "nginx", **keys}
    loaded = load_configuration(source, environ={"HOME": "/home/me", "EMPTY": ""}, args=["a b", "$c"])
    assert isinstance(loaded, ServiceConfiguration)
    return loaded


def joined(parts: list[Part]) -> list[Part]:
    """Put literals that stand side by side together, as `parse` has them."""
    done: list[Part] = []
    for part in parts:
        if isinstance(part, str) and done and isinstance(done[-1], str):
            done[-1] += part
        elif part:
            done.append(part)
    return done


@given(TEXTS)
def test_any_text_survives_being_escaped(text: str) -> None:
    assert parse(escape(text)) == ([text] if text else [])


@given(st.lists(TEXTS | REFERENCES, max_size=6).map(joined))
def test_what_is_rendered_is_split_into_the_same_parts(parts: list[Part]) -> None:
    pairs = itertools.pairwise(parts)
    assume(not any(isinstance(a, str) and a.endswith("$") and isinstance(b, Reference) for a, b in pairs))
    assert parse(render(parts)) == parts


def test_a_dollar_before_a_reference_cannot_be_rendered() -> None:
    with pytest.raises(InterpolationError, match=r"a '\$' directly before"):
        render(["$", Reference("secrets", "X")])


@given(TEXTS | st.text())
def test_any_text_is_split_or_refused(text: str) -> None:
    with contextlib.suppress(InterpolationError):
        assert (
            "".join(str(part) for part in parse(text)) == text.replace("$${{", "${{")
            or secrets_of(text)
            or "${{" in text
        )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plain", ["plain"]),
        ("${{ secrets.A }}", [Reference("secrets", "A")]),
        ("${{secrets.A}}", [Reference("secrets", "A")]),
        ("a${{ env.B }}c", ["a", Reference("env", "B"), "c"]),
        ("$${{ env.B }}", ["${{ env.B }}"]),
        ("$$${{ env.B }}", ["$${{ env.B }}"]),
        ("${B} $C {{ d }} $$", ["${B} $C {{ d }} $$"]),
        ("", []),
    ],
)
def test_splitting(text: str, parts: list[Part]) -> None:
    assert parse(text) == parts


def test_env_and_run_are_filled_in() -> None:
    loaded = service(
        name="web",
        env={"TAG": "1.27", "FULL": "v${{ env.TAG }}", "N": 3, "EMPTY": "kept"},
        image="nginx:${{ env.TAG }}",
        commands=[
            (
                "${{ run.name }} ${{ run.args }} ${{ env.FULL }} ${{ env.HOME }} ${{ env.N }} "
                "${{env.EMPTY}}$${{ x }}"
            )
        ],
        port="${{ env.N }}001:8000",
    )
    assert loaded.image == "nginx:1.27"
    assert loaded.commands == ("web 'a b' '$c' v1.27 /home/me 3 kept${{ x }}",)
    assert loaded.port.gateway_port == 3001


def test_the_name_may_be_filled_in_first() -> None:
    assert service(name="web-${{ env.N }}", env=["N=3"], user="${{ run.name }}").user == "web-3"


def test_keys_that_are_numbers_or_truth_values_may_be_filled_in() -> None:
    loaded = service(env={"R": "3", "P": "yes", "M": "2GB"}, retain="${{ env.R }}", privileged="${{ env.P }}")
    assert (loaded.retain, loaded.privileged) == (3, True)


def test_secrets_stay_references_where_they_may_stand() -> None:
    loaded = service(
        gateway="${{ secrets.GW }}",
        env={"URL": "http://u:${{ env.PASS }}@h", "PASS": "${{ secrets.P }}", "LIT": "$${{ secrets.NO }}"},
        registry_auth={"username": "${{ secrets.U }}", "password": "x${{ secrets.W }}"},
    )
    assert loaded.gateway == "${{ secrets.GW }}"
    assert loaded.env["URL"] == "http://u:${{ secrets.P }}@h"
    assert secret_names(loaded) == {"GW", "P", "U", "W"}
    assert resolve_text(loaded.env["LIT"] or "", lambda name: "?") == "${{ secrets.NO }}"
    assert load_configuration(loaded.model_dump(mode="json", exclude_unset=True)) == loaded


@given(TEXTS, TEXTS)
def test_what_was_literal_stays_literal_through_a_record(command: str, value: str) -> None:
    assume(command.strip())
    loaded = service(commands=[escape(command)], env={"A": escape(value)})
    assert loaded.commands == (command,)
    assert resolve_text(loaded.env["A"] or "", lambda name: "?") == value
    again = load_configuration(loaded.model_dump(mode="json", exclude_unset=True), environ={})
    assert again == loaded


@pytest.mark.parametrize(
    "place",
    [
        {"image": "${{ secrets.X }}"},
        {"commands": ["${{ secrets.X }}"]},
        {"entrypoint": "${{ secrets.X }}"},
        {"tags": {"a": "${{ secrets.X }}"}},
        {"model": "${{ secrets.X }}"},
        {"name": "${{ secrets.X }}"},
        {"working_dir": "${{ secrets.X }}"},
    ],
)
def test_secrets_are_refused_elsewhere(place: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="a secret cannot be kept here: put it under 'env' and use"):
        service(**place)


def test_a_value_from_the_environment_is_data_not_a_reference() -> None:
    loaded = load_configuration(
        {"type": "task", "commands": ["echo ${{ env.X }}"], "env": {"Y": "${{ env.X }}"}},
        environ={"X": "${{ secrets.Z }}"},
    )
    assert secret_names(loaded) == set()
    assert loaded.model_dump()["commands"] == ("echo $${{ secrets.Z }}",)


def test_what_is_not_text_in_the_environment_is_refused() -> None:
    source = {"type": "task", "commands": ["echo ${{ env.X }}"]}
    with pytest.raises(ConfigurationError, match=r"commands\.0: has a character that is not text"):
        load_configuration(source, environ={"X": "\udcff"})


@given(st.text("$SECRETab ", max_size=12), st.text(max_size=12))
def test_resolving_replaces_references_and_nothing_else(before: str, secret: str) -> None:
    assume(not before.endswith("$"))
    assert resolve_text(escape(before) + "${{ secrets.S }}!", lambda name: secret) == f"{before}{secret}!"
