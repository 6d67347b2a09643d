from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefect_dstack.backends.aws.keys import client_key
from prefect_dstack.errors import ProvisioningError


def test_the_key_is_made_once_for_this_user_only(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: client_key(tmp_path / "aws"), range(8)))
    assert len({key.public for key in keys}) == 1
    (path,) = (tmp_path / "aws").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert keys[0].public.startswith("ssh-ed25519 ")
    assert "PRIVATE" not in repr(keys[0])


def test_a_damaged_key_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "id_ed25519").write_text("garbage")
    with pytest.raises(ProvisioningError, match="remove it to get a new one"):
        client_key(tmp_path)
