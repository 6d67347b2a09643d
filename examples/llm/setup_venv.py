"""Make a virtual environment with the packages of a requirements file, unless it is there already.

Usage: `python3 setup_venv.py FOLDER REQUIREMENTS`. Safe to run again, by several replicas at once, and after
a run that was killed half-way.
"""

from __future__ import annotations

import fcntl
import importlib.util
import subprocess
import sys
import venv
from pathlib import Path


def main(folder: Path, requirements: Path) -> None:
    """Bring the virtual environment in `folder` up to date with `requirements`."""
    folder.mkdir(parents=True, exist_ok=True)
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    made_with = f"# Python {sys.version}\n"
    wanted = made_with + requirements.read_text()
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed = stamp.read_text() if stamp.exists() and python.exists() else ""
        if installed == wanted:
            return
        print(f"installing {requirements} into {folder}", flush=True)
        if not installed.startswith(made_with):
            venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--requirement", str(requirements)], check=True)
        stamp.write_text(wanted)


if __name__ == "__main__":
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(
            "setup_venv.py: this Python makes no virtual environments (on Debian: apt install python3-venv)"
        )
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except subprocess.CalledProcessError as error:
        sys.exit(f"setup_venv.py: {error}")
