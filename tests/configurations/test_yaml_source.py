"""YAML: what its scalars stand for, where everything stands, and that all text is data or our error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dstack.configurations import load_configuration, secret_names, written_keys
from prefect_dstack.configurations.yaml_source import read_yaml
from prefect_dstack.errors import ConfigurationError

SAMPLES = [path.read_text() for path in sorted(Path(__file__).parent.glob("samples/*.dstack.yml"))]
# fmt: off
YAML_PIECES = st.sampled_from([
    "type: service\n", "port: ", "8000", "- ", "  ", "\n", "\t", ": ", "{", "}", "[", "]", ",", "&a ", "*a",
    "<<: ", "'", '"', "|\n", ">\n", "#", "!", "!!int ", "%YAML 1.1\n", "---\n", "...\n", "? ", "\\", "${{ ",
    "}}", "env.X", "~", "null", "..", "\0", "\ud800", "\U0001f600", '"\\UFFFFFFFF"', '"\\x"', "0x", "1e999",
    "\ufeff",
])
# fmt: on
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def only_our_error(source: Any) -> None:
    """Load; what loads must come back from its record, what does not must say why on one line."""
    try:
        loaded = load_configuration(source, environ={"X": "1"})
    except ConfigurationError as error:
        text = str(error)
        assert text.isprintable(), ascii(text)
        assert len(text) < 600, text
    else:
        record = json.loads(json.dumps(loaded.model_dump(mode="json", exclude_unset=True), allow_nan=False))
        assert load_configuration(record, environ={}) == loaded
        assert load_configuration(loaded.model_dump(mode="json"), environ={}) == loaded
        assert written_keys(loaded)
        assert isinstance(secret_names(loaded), set)


@given(st.text(max_size=200).map(lambda text: text + "\n"))
def test_no_text_makes_anything_but_our_error(text: str) -> None:
    only_our_error(text)


@settings(max_examples=200)
@given(st.lists(YAML_PIECES, max_size=30).map(lambda pieces: "type: service\n" + "".join(pieces)))
def test_nothing_like_yaml_makes_anything_but_our_error(text: str) -> None:
    only_our_error(text)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_slip_in_a_real_file_makes_anything_but_our_error(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(SAMPLES))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(YAML_PIECES | st.text(max_size=3)) + text[at + length :]
    only_our_error(text)


def keys_of_samples() -> list[tuple[str, str]]:
    pairs = []
    for text in SAMPLES:
        data = read_yaml(text, "sample").data
        pairs += [(text, key) for key in data if key != "type"]
    return pairs


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(keys_of_samples()), JSON)
def test_no_value_of_any_key_makes_anything_but_our_error(sample: tuple[str, str], value: Any) -> None:
    text, key = sample
    only_our_error({**read_yaml(text, "sample").data, key: value})


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(keys_of_samples()), st.data(), JSON)
def test_no_value_within_any_key_makes_anything_but_our_error(
    sample: tuple[str, str], data: st.DataObject, value: Any
) -> None:
    text, key = sample
    root = read_yaml(text, "sample").data
    at: Any = root
    step: Any = key
    while isinstance(at[step], (dict, list)) and at[step] and data.draw(st.booleans()):
        at = at[step]
        step = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else list(range(len(at)))))
    at[step] = value
    only_our_error(root)


@pytest.mark.parametrize(
    ("typed", "stands_for"),
    [
        ("8001:8000", "8001:8000"),
        ("1:30:00", "1:30:00"),
        ("08000", 8000),
        ("0777", 777),
        ("0o17", 15),
        ("0x1F", 31),
        ("-5", -5),
        ("+5", 5),
        ("1_000", "1_000"),
        ("3.10", 3.1),
        ("1e3", 1000.0),
        ("1e999", "1e999"),
        (".5", 0.5),
        (".nan", ".nan"),
        (".inf", ".inf"),
        ("9" * 30, "9" * 30),
        ("9" * 5000, "9" * 5000),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("~", None),
        ("null", None),
        ("", None),
        ("2024-01-02", "2024-01-02"),
        ("'8000'", "8000"),
        ('"true"', "true"),
        ("!!str 8000", "8000"),
        ("! 8000", "8000"),
        ("!!int 8000", 8000),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(typed: str, stands_for: object) -> None:
    value = read_yaml(f"a: {typed}\n", "x").data["a"]
    assert value == stands_for
    assert isinstance(value, type(stands_for))


def test_numbers_remember_how_they_were_typed() -> None:
    data = read_yaml("a: 3.10\nb: 0x1F\nc: 1e3\n", "x").data
    assert [data[key].text for key in "abc"] == ["3.10", "0x1F", "1e3"]


def test_keys_are_text_as_typed() -> None:
    assert read_yaml("on: 1\nyes: 2\n8000: 3\n3.10: 4\n~: 5\n", "x").data == {
        "on": 1, "yes": 2, "8000": 3, "3.10": 4, "~": 5,
    }  # fmt: skip


def test_lines_of_keys_and_values() -> None:
    document = read_yaml("# top\na: 1\nb:\n  - c:\n      d: 2\n  -\n    e: 3\n", "x")
    assert document.lines == {
        ("a",): 2, ("b",): 3, ("b", 0): 4, ("b", 0, "c"): 4, ("b", 0, "c", "d"): 5, ("b", 1): 7,
        ("b", 1, "e"): 7,
    }  # fmt: skip
    assert document.value_lines[("b", 0, "c")] == 5


def test_anchors_aliases_and_merges() -> None:
    text = "base: &b {cpu: 2, memory: 4GB}\nlist: &l [1]\n"
    text += "x: {<<: *b, cpu: 8}\ny: {<<: [{a: 1}, *b, {a: 2}]}\nz: *l\n"
    document = read_yaml(text, "x")
    assert document.data["x"] == {"cpu": 8, "memory": "4GB"}
    assert document.data["y"] == {"a": 1, "cpu": 2, "memory": "4GB"}
    assert document.data["z"] == [1]
    assert document.lines[("x", "memory")] == 1


def test_a_quoted_merge_is_a_key() -> None:
    assert read_yaml("a: {'<<': 1}\n", "x").data == {"a": {"<<": 1}}


def test_an_anchor_of_one_document_is_not_known_in_itself() -> None:
    with pytest.raises(ConfigurationError, match="alias"):
        read_yaml("a: &a [*a]\n", "x")
