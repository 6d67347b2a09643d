from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from prefect_dstack.backends.aws.user_data import LONGEST, user_data
from prefect_dstack.errors import ProvisioningError
from prefect_dstack.hosts.keys import generate_key_pair


def test_it_is_a_cloud_config_with_our_host_key_and_nobody_elses_login(tmp_path: Path) -> None:
    key = generate_key_pair("")
    text = user_data(key, ["ssh-ed25519 AAAA someone"])
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    assert config["ssh_authorized_keys"] == ["ssh-ed25519 AAAA someone"]
    assert config["ssh_pwauth"] is False
    assert config["disable_root"] is True
    assert config["ssh_deletekeys"] is True
    private = tmp_path / "key"
    private.write_text(config["ssh_keys"]["ed25519_private"])
    private.chmod(0o600)
    public = subprocess.run(
        ["ssh-keygen", "-y", "-f", private], check=True, capture_output=True, text=True
    ).stdout
    assert public.split()[:2] == config["ssh_keys"]["ed25519_public"].split()[:2] == key.public.split()[:2]


def test_its_script_is_a_program_of_the_shell() -> None:
    (command,) = yaml.safe_load(user_data(generate_key_pair(), []))["runcmd"]
    assert command[:2] == ["sh", "-c"]
    subprocess.run(["sh", "-n", "-c", command[2]], check=True)


def test_more_than_ec2_takes_is_refused_here() -> None:
    with pytest.raises(ProvisioningError, match=f"more than the {LONGEST} that EC2 takes"):
        user_data(generate_key_pair(), ["ssh-ed25519 " + "A" * 68] * 400)
