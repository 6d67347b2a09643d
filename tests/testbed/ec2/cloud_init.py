"""What cloud-init does on a first boot, as far as our user data asks for it."""

from __future__ import annotations

import yaml

from tests.testbed.host import Host

LOGIN = "ubuntu"

# A host has no systemd; its Docker Engine is started by its first process.
SYSTEMCTL = "#!/bin/sh\nexit 0\n"


def install_container_toolkit(host: Host) -> None:
    """Let the Docker Engine of a host that is switched off take requests for GPUs, as the GPU image does.

    There is no GPU: containers get the environment variable that names theirs, and no device.
    """
    # The engine looks for this program when it starts, and calls it before it starts such a container.
    hook = host._directory / "disk/own/usr/local/bin/nvidia-container-runtime-hook"
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)


def apply(host: Host, user_data: str) -> None:
    """Set up a host that has just been switched on; the SSH server is restarted before anything else is run.

    Raises:
        ValueError: The user data asks for something that this does not do.
        RuntimeError: A command of it failed.
    """
    header, _, text = user_data.partition("\n")
    if header != "#cloud-config":
        raise ValueError(f"not a cloud-config: {header!r}")
    config = yaml.safe_load(text)
    keys = config.pop("ssh_keys")
    authorized = config.pop("ssh_authorized_keys")
    files = config.pop("write_files")
    commands = config.pop("runcmd")
    if config != {"ssh_deletekeys": True, "ssh_pwauth": False, "disable_root": True}:
        raise ValueError(f"not understood: {config}")
    host.write_file("/usr/local/bin/systemctl", SYSTEMCTL, mode=0o755)
    # Images log in as a user who becomes root by sudo without a password, not as root.
    host.add_user(LOGIN, public_key="\n".join(authorized))
    host.write_file("/etc/sudoers.d/90-cloud-init-users", f"{LOGIN} ALL=(ALL) NOPASSWD:ALL\n", mode=0o440)
    host.check(["rm", "-f", "/root/.ssh/authorized_keys"])
    for file in files:
        host.write_file(file["path"], file["content"], mode=int(file["permissions"], 8))
    host.check(["sh", "-c", 'echo "Include /etc/ssh/sshd_config.d/*.conf" >>/etc/ssh/sshd_config'])
    host.set_host_key(keys["ed25519_private"])
    shown = host.read_file("/etc/ssh/ssh_host_ed25519_key.pub").split()[:2]
    if shown != keys["ed25519_public"].split()[:2]:
        raise ValueError("the public host key is not that of the private one")
    for command in commands:
        host.check(command)
