"""What a new machine is told on its first boot, as cloud-init reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from prefect_dstack.errors import ProvisioningError
from prefect_dstack.hosts.keys import KeyPair

__all__ = ["LOGIN", "READY", "user_data"]

LOGIN = "ubuntu"
"""The user of Ubuntu's and the Deep Learning images."""

READY = "/var/lib/prefect-dstack-ready"
"""A file that is there when the first boot is over."""

# EC2's limit, before base64.
LONGEST = 16 * 1024

# One connection carries a session for every call to the Docker Engine; sshd allows ten by default.
SSHD = "MaxSessions 100\nPasswordAuthentication no\n"

INSTALL_DOCKER = f"""\
set -u
tries=0
until command -v docker >/dev/null; do
    tries=$((tries + 1)); [ $tries -le 10 ] || exit 1
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes docker.io || sleep 5
done
usermod --append --groups docker {LOGIN}
systemctl enable --now docker
touch {READY}
"""


def user_data(host_key: KeyPair, authorized_keys: Iterable[str]) -> str:
    """Return the user data of a machine.

    Args:
        host_key: The key that its SSH server shows: made by us, so that we know it before we connect.
        authorized_keys: Public keys that may log in.

    Returns:
        A cloud-config. It holds the private host key, which the machine's metadata service shows to programs
        on it but, by the hop limit of 1, not to containers on a bridge network.

    Raises:
        ProvisioningError: If it is longer than EC2 takes.
    """
    config = {
        "ssh_deletekeys": True,
        "ssh_keys": {
            "ed25519_private": host_key.private.get_secret_value(),
            "ed25519_public": host_key.public,
        },
        "ssh_pwauth": False,
        "disable_root": True,
        "ssh_authorized_keys": list(authorized_keys),
        "write_files": [
            {"path": "/etc/ssh/sshd_config.d/10-prefect-dstack.conf", "permissions": "0644", "content": SSHD}
        ],
        "runcmd": [["sh", "-c", INSTALL_DOCKER]],
    }
    # JSON is YAML.
    text = "#cloud-config\n" + json.dumps(config, indent=1) + "\n"
    if len(text.encode()) > LONGEST:
        raise ProvisioningError(
            f"aws: the user data has {len(text.encode())} bytes, more than the {LONGEST} that EC2 takes; "
            "authorize fewer SSH keys"
        )
    return text
