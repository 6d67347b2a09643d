"""What hides the secrets of an environment, and which credentials are a slip."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from prefect_dstack.configurations import Environment, RegistryAuth


def test_secrets_are_taken_out_of_what_a_program_has_written() -> None:
    secret = {"TOKEN": "s3cret-value", "KEY": "-----BEGIN\n  line of a key\n", "ON": "1"}
    environment = Environment(secret={name: SecretStr(value) for name, value in secret.items()})
    assert environment.hide("got s3cret-value 1 time, then line of a key") == "got *** 1 time, then ***"


@pytest.mark.parametrize("password", ["$NGC_API_KEY", "${NGC_API_KEY}"])
def test_a_shells_variable_is_no_password(password: str) -> None:
    with pytest.raises(ValidationError, match=r"did you mean \$\{\{ env.NGC_API_KEY \}\}"):
        RegistryAuth(username="$oauthtoken", password=password)


@pytest.mark.parametrize(
    "password", ["$oauthtoken", "$a1B2c3", "pa$$WORD", "$X", "${{ env.NGC_API_KEY }}", "${{ secrets.X }}"]
)
def test_any_other_text_is_a_password(password: str) -> None:
    assert RegistryAuth(username="$oauthtoken", password=password).password == password
