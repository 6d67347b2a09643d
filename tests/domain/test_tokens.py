"""What a token is, and which tokens open what."""

from __future__ import annotations

import contextlib
import hashlib
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.domain.tokens import Token, expiry, new_token, of_gateway, of_service, token_id
from prefect_dstack.errors import ConfigurationError

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def known(identifier: str, **fields: object) -> Token:
    return Token.model_validate({"id": identifier, "sha256": "0" * 64, "created_at": NOW, **fields})


class TestANewToken:
    def test_is_one_word_that_says_what_it_is(self) -> None:
        token = new_token(NOW)

        assert re.fullmatch(r"dst_[a-z0-9]{10}_[A-Za-z0-9]{40}", token.value.get_secret_value())
        assert token.value.get_secret_value().split("_")[1] == token.id

    def test_is_known_by_its_digest(self) -> None:
        token = new_token(NOW)

        assert token.sha256 == hashlib.sha256(token.value.get_secret_value().encode()).hexdigest()

    def test_never_comes_twice(self) -> None:
        assert len({new_token(NOW).sha256 for _ in range(1000)}) == 1000

    def test_is_not_shown_by_accident(self) -> None:
        token = new_token(NOW, service="hello")

        for text in (repr(token), str(token), token.model_dump_json()):
            assert token.value.get_secret_value() not in text
        assert "value" not in Token.model_fields


class TestItsEnd:
    @pytest.mark.parametrize(
        ("written", "length"),
        [
            ("30d", timedelta(days=30)),
            ("1h30m", timedelta(minutes=90)),
            ("2w", timedelta(days=14)),
            (timedelta(hours=5), timedelta(hours=5)),
        ],
    )
    def test_is_so_long_from_now(self, written: str | timedelta, length: timedelta) -> None:
        assert expiry(written, NOW) == NOW + length

    def test_does_not_come_if_none_is_given(self) -> None:
        assert expiry(None, NOW) is None

    @pytest.mark.parametrize(
        "written", ["0", "0d", "-1d", "soon", "", "30 years", timedelta(0), timedelta(-1)]
    )
    def test_must_be_a_duration_of_some_length(self, written: str | timedelta) -> None:
        with pytest.raises(ConfigurationError, match=r"^expires: must be "):
            expiry(written, NOW)

    @given(st.text(max_size=20))
    def test_of_any_text_is_in_the_future_or_an_error_of_one_line(self, written: str) -> None:
        end = None
        with contextlib.suppress(ConfigurationError):
            end = expiry(written, NOW)

        assert end is None or end > NOW
        if end is None:
            with pytest.raises(ConfigurationError, match=r"\A[^\n]+\Z"):
                expiry(written, NOW)


class TestItsId:
    def test_is_found_in_the_token_itself(self) -> None:
        token = new_token(NOW)

        assert token_id(f" {token.value.get_secret_value()}\n") == token.id
        assert token_id(token.id) == token.id

    @given(st.text())
    def test_of_other_text_is_that_text(self, text: str) -> None:
        assert token_id(text) in (text.strip(), *text.split("_"))


class TestWhatItOpens:
    def test_is_its_service(self) -> None:
        mine, other = known("a", service="hello"), known("b", service="other")

        assert of_service([mine, other], "hello", NOW) == {"a": mine}

    def test_is_all_services_of_its_gateway_or_of_every_gateway(self) -> None:
        everywhere, here, there = known("a"), known("b", gateway="here"), known("c", gateway="there")
        tokens = [everywhere, here, there, known("d", service="hello")]

        assert of_gateway(tokens, "here", NOW) == {"a": everywhere, "b": here}
        assert of_service(tokens, "here", NOW) == {}

    @pytest.mark.parametrize(
        "fields", [{"revoked": True}, {"expires_at": NOW}, {"expires_at": NOW - timedelta(days=1)}]
    )
    def test_is_nothing_once_it_is_over(self, fields: dict[str, object]) -> None:
        assert of_service([known("a", service="hello", **fields)], "hello", NOW) == {}
        assert of_gateway([known("a", **fields)], "here", NOW) == {}

    def test_is_nothing_else_before_its_end(self) -> None:
        token = known("a", expires_at=NOW + timedelta(seconds=1))

        assert of_gateway([token], "here", NOW) == {"a": token}
