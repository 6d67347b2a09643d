"""What a run brings along or mounts: volumes, files, repositories."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.interpolation import OPENING, fill_references, references
from prefect_dstack.configurations.messages import show
from prefect_dstack.configurations.names import ContainerPath, InstancePath, Line, LocalPath, VolumeName

_GIT_URL = re.compile(r"(?:[a-z+]{2,10}://|[A-Za-z0-9_.-]{1,64}@)[A-Za-z0-9_.@:/~%+-]{1,1024}")
_WITH_USER = re.compile(r"(https?://)([^@/]*)@(.*)", re.DOTALL)
_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/@#+-]{0,254}")
_COMMIT = re.compile(r"[0-9a-fA-F]{7,64}")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


class VolumeMount(Model):
    """A network volume in a container, written as `name:/path`, perhaps with `:ro`, or a mapping."""

    shorthand = ("string",)

    name: Annotated[
        tuple[VolumeName, ...],
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]
        ),
        Field(min_length=1),
    ] = Field(description="The name of the volume, or of several of which one is mounted.")
    path: ContainerPath = Field(description="The absolute path in the container.")
    read_only: bool = Field(default=False, description="Whether the container can only read it.")


class InstanceMount(Model):
    """A directory of the instance in a container.

    Written as `/on/instance:/in/container`, perhaps with `:ro`, or a mapping.
    """

    shorthand = ("string",)

    instance_path: InstancePath = Field(
        description="The absolute path on the instance; ~/ is the home directory of its user."
    )
    path: ContainerPath = Field(description="The absolute path in the container.")
    read_only: bool = Field(default=False, description="Whether the container can only read it.")
    optional: bool = Field(default=False, description="Whether to run without it where it cannot be mounted.")


def _parse_mount(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    source, *rest = value.split(":")
    mode = rest[1] if len(rest) == 2 else "rw"
    if not rest or len(rest) > 2 or mode not in ("ro", "rw"):
        refuse(
            "must be 'volume:/path' or '/on/instance:/in/container', perhaps with ':ro' for read-only, "
            f"not {show(value)}"
        )
    if OPENING in rest[0]:
        refuse("a reference cannot stand in the path in the container")
    of_instance = "/" in source or source == "~"
    read_only = {"read_only": mode == "ro"} if len(rest) == 2 else {}
    return {"instance_path" if of_instance else "name": source, "path": rest[0], **read_only}


def _kind_of_mount(value: Any) -> str:
    of_instance = "instance_path" in value if isinstance(value, dict) else isinstance(value, InstanceMount)
    return "instance" if of_instance else "volume"


Mount = Annotated[
    Annotated[VolumeMount, Tag("volume")] | Annotated[InstanceMount, Tag("instance")],
    Discriminator(_kind_of_mount),
    BeforeValidator(_parse_mount),
]


class FileMapping(Model):
    """A file or directory that is copied to the run, written as `local`, `local:path` or a mapping."""

    shorthand = ("string",)

    local_path: LocalPath = Field(
        description="The path on the deployer's machine, relative to the configuration's directory."
    )
    path: LocalPath = Field(description="The path in the run, relative to its working directory.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        drive, rest = (value[:2], value[2:]) if _WINDOWS_DRIVE.match(value) else ("", value)
        local, colon, path = rest.partition(":")
        if ":" in path or (colon and not path):
            refuse(f"must be 'local' or 'local:path', not {show(value)}")
        return {"local_path": drive + local, "path": path if colon else drive + local}

    @model_validator(mode="after")
    def _unix(self) -> Self:
        if _WINDOWS_DRIVE.match(self.path):
            refuse(f"must be a path of the run, not of Windows: {show(self.path)}", key="path")
        return self


class Repository(Model):
    """A Git repository that the run gets, written as a path or a URL, perhaps with `:path`, or a mapping."""

    shorthand = ("string",)

    local_path: LocalPath | None = Field(
        default=None, description="The path of the repository on the deployer's machine."
    )
    url: Line | None = Field(
        default=None,
        description="The URL of the repository; a secret may stand before its host, as in "
        "https://${{ secrets.TOKEN }}@git.example.com/a.git.",
    )
    branch: Line | None = Field(
        default=None, description="The branch; the active or default one if not given."
    )
    hash: Line | None = Field(default=None, description="The commit; the newest if not given.")
    path: LocalPath = Field(default=".", description="Where to check it out in the run.")
    if_exists: Literal["error", "skip"] = Field(
        default="error", description="What to do if the path exists and is not empty: error or skip."
    )

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = value.split(":")
        is_url = len(parts) > 1 and ("@" in parts[0] or parts[1].startswith("//"))
        if is_url or _WINDOWS_DRIVE.match(value):
            parts = [f"{parts[0]}:{parts[1]}", *parts[2:]]
        if len(parts) > 2:
            refuse(f"must be a path or a URL, perhaps with ':path', not {show(value)}")
        return {"url" if is_url else "local_path": parts[0], **({"path": parts[1]} if parts[1:] else {})}

    @property
    def address(self) -> tuple[str, str]:
        """The URL without the credentials in it, and those: `user:password`, or one of them; perhaps empty.

        A user's name alone stays in the URL, as Git asks its own helpers for that user's password.
        """
        match = _WITH_USER.fullmatch(self.url or "")
        if match is None or (":" not in match[2] and OPENING not in match[2]):
            return self.url or "", ""
        return match[1] + match[3], match[2]

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.local_path is None) == (self.url is None):
            refuse("must have either local_path or url")
        for key in ("local_path", "path"):
            if OPENING in (getattr(self, key) or ""):
                refuse("a reference can only stand in 'url', before the host", key=key)
        if self.url is not None:
            _check_url(self)
        if self.branch is not None and not _BRANCH.fullmatch(self.branch):
            refuse(f"must be the name of a branch, not {show(self.branch)}", key="branch")
        if self.hash is not None and not _COMMIT.fullmatch(self.hash):
            refuse(f"must be a commit of 7 to 64 hexadecimal digits, not {show(self.hash)}", key="hash")
        return self


def _check_url(repository: Repository) -> None:
    url, user = repository.address
    try:
        known = _GIT_URL.fullmatch(url) and (not user or fill_references(user, lambda _: "x"))
    except ValueError as problem:
        refuse(str(problem), key="url")
    if not known or OPENING in url:
        refuse("must be the URL of a Git repository; a secret may stand before its host only", key="url")
    _, colon, password = user.partition(":")
    if colon and not references(password):
        refuse(
            "has a password in it, which belongs in a secret: https://${{ secrets.NAME }}@git.example.com",
            key="url",
        )


class Artifact(Model):
    """A directory that an older configuration stored after the run."""

    path: LocalPath = Field(description="The path of the directory.")
    mount: bool = Field(default=False, description="Whether files were stored while the run went on.")
