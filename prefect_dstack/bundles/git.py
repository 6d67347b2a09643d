"""Checks out Git repositories of other machines."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from prefect_dstack.bundles.copying import remove_tree
from prefect_dstack.configurations import RemoteRepository
from prefect_dstack.errors import ConfigurationError

__all__ = ["check_out"]

TIMEOUT = 900.0
# Seconds after which a checkout that nobody has used since is removed: revisions have copies of their own.
KEPT = 86400.0
KEY = "repos.0"

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# Reads what Git cannot be told in an argument, which others on the machine could read.
_HELPER = (
    '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" '
    '"$PREFECT_DSTACK_GIT_USERNAME" "$PREFECT_DSTACK_GIT_PASSWORD"; }; f'
)


def check_out(remote: RemoteRepository, directory: Path) -> Path:
    """Check out a commit of a repository, unless it is there already.

    Git runs as the user who calls this, with their configuration, SSH keys and helpers for credentials.

    Args:
        remote: The repository, and the branch or commit that is wanted.
        directory: Where checkouts are kept, by repository and commit. Any number of processes may use it.

    Returns:
        The files of the commit with those of its submodules, without their history. They stay there for a
        day after the last use.

    Raises:
        ConfigurationError: If it cannot be fetched; the message has Git's own words.

    Example:
        >>> check_out(RemoteRepository("https://git.example.com/a.git"), Path("checkouts"))  # doctest: +SKIP
    """
    place = directory / hashlib.sha256(remote.url.encode()).hexdigest()[:32]
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    git = _Git(remote)
    with _locked(place):
        _remove_unused(directory, place)
        commit = git.newest() if remote.commit is None else remote.commit.lower()
        # Whether a commit is on a branch only the branch tells.
        is_certain = remote.commit is None or remote.branch is None
        if is_certain and _COMMIT.fullmatch(commit) and (place / commit).is_dir():
            os.utime(place / commit)
            return place / commit
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=place))
        try:
            commit = git.fetch(fresh)
            tree = place / commit
            if not tree.is_dir():
                git.submodules(fresh)
                shutil.rmtree(fresh / ".git")
                fresh.rename(tree)
            os.utime(tree)
            return tree
        finally:
            if fresh.is_dir():
                remove_tree(fresh)


class _Git:
    """Git, as it talks to one repository."""

    def __init__(self, remote: RemoteRepository) -> None:
        self.remote = remote
        self.environment = environment_of(remote, os.environ)

    def newest(self) -> str:
        """Return the newest commit of the branch."""
        listed = self.run("ls-remote", "--", self.remote.url, self._reference)
        for line in listed.splitlines():
            commit, _, reference = line.partition("\t")
            if reference == self._reference:
                return commit
        raise self._error(f"has no branch '{self.remote.branch}'" if self.remote.branch else "has no commit")

    def fetch(self, tree: Path) -> str:
        """Check out what is wanted into an empty directory, and return its commit."""
        self.run("init", "--quiet", str(tree))
        commit, branch = self.remote.commit, self.remote.branch
        if commit is None:
            self._fetch(tree, [["--depth=1", self._reference], [self._reference]])
        elif branch is not None:
            self._fetch(tree, [[self._reference]])
        else:
            everything = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]
            # Not every server gives a commit by its number, and none by an abbreviated one.
            alone = [["--depth=1", commit]] if _COMMIT.fullmatch(commit.lower()) else []
            self._fetch(tree, [*alone, everything])
        found = self._commit(tree, commit or "FETCH_HEAD")
        if found is None:
            raise self._error(f"has no commit {commit}")
        if commit is not None and branch is not None:
            try:
                self.run("-C", str(tree), "merge-base", "--is-ancestor", found, "FETCH_HEAD")
            except ConfigurationError:
                raise self._error(f"has no commit {commit} on branch '{branch}'") from None
        self.run("-C", str(tree), "checkout", "--quiet", "--force", "--detach", found)
        return found

    def submodules(self, tree: Path) -> None:
        """Check out the submodules of a tree."""
        if (tree / ".gitmodules").is_file():
            self.run("-C", str(tree), "submodule", "--quiet", "update", "--init", "--recursive", "--depth=1")

    @property
    def _reference(self) -> str:
        return f"refs/heads/{self.remote.branch}" if self.remote.branch else "HEAD"

    def _fetch(self, tree: Path, attempts: Sequence[Sequence[str]]) -> None:
        for number, wanted in enumerate(attempts, 1):
            options = [it for it in wanted if it.startswith("--")]
            references = [it for it in wanted if not it.startswith("--")]
            try:
                self.run(
                    *("-C", str(tree), "fetch", "--quiet", "--no-tags", *options, "--"),
                    *(self.remote.url, *references),
                )
            except ConfigurationError:
                if number == len(attempts):
                    raise
            else:
                return

    def _commit(self, tree: Path, name: str) -> str | None:
        with contextlib.suppress(ConfigurationError):
            return self.run("-C", str(tree), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
        return None

    def run(self, *arguments: str) -> str:
        """Run Git, and return what it prints."""
        try:
            done = subprocess.run(
                ["git", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
                check=False,
                # Without a terminal, nothing can be asked for that nobody would see.
                start_new_session=True,
            )
        except FileNotFoundError:
            raise ConfigurationError(
                "git is not installed on this machine, and 'repos' needs it", key=KEY
            ) from None
        except subprocess.TimeoutExpired:
            raise self._error(f"did not answer within {TIMEOUT:.0f} s") from None
        if done.returncode != 0:
            raise self._error(f"cannot be fetched: {reason(done.stderr)}")
        return done.stdout

    def _error(self, problem: str) -> ConfigurationError:
        return ConfigurationError(f"{self.remote.url} {problem}", key=KEY)


def environment_of(remote: RemoteRepository, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which Git talks to a repository.

    Args:
        remote: The repository; its credentials are given to its own host only.
        environ: The environment of this process.

    Returns:
        Variables.
    """
    # What a hook or an alias of Git has set is about another repository.
    environment = {name: value for name, value in environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GCM_INTERACTIVE": "never", "LC_ALL": "C"}
    if remote.password is None:
        return environment
    parts = urlsplit(remote.url)
    host = f"credential.{parts.scheme}://{parts.netloc}.helper"
    written = environ.get("GIT_CONFIG_COUNT", "")
    first = int(written) if written.isdecimal() else 0
    # The empty one makes Git forget the helpers of the user, which might save what is given to it.
    for number, value in enumerate(("", _HELPER), first):
        environment |= {f"GIT_CONFIG_KEY_{number}": host, f"GIT_CONFIG_VALUE_{number}": value}
    return environment | {
        "GIT_CONFIG_COUNT": str(first + 2),
        "PREFECT_DSTACK_GIT_USERNAME": remote.username,
        "PREFECT_DSTACK_GIT_PASSWORD": remote.password.get_secret_value(),
    }


def reason(written: str) -> str:
    """Return the line in which Git says what went wrong.

    Args:
        written: What it wrote to its standard error.
    """
    lines = [line.strip() for line in written.splitlines() if line.strip()]
    fatal = [line.removeprefix("fatal: ") for line in lines if line.startswith("fatal: ")]
    return next(iter([*fatal, *lines]), "Git does not say why")


def _remove_unused(directory: Path, place: Path) -> None:
    """Remove what nobody has used for long, and what was left of processes that were killed here."""
    oldest = time.time() - KEPT
    for tree in directory.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            unfinished = tree.parent == place and tree.name.startswith(".new-")
            if tree.is_dir() and (unfinished or tree.stat().st_mtime < oldest):
                remove_tree(tree)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    with (place / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
