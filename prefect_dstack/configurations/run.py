"""The keys that services, tasks and development environments share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from prefect_dstack.configurations.base import ConfigurationModel, refuse
from prefect_dstack.configurations.environment import Env, RegistryAuth
from prefect_dstack.configurations.interpolation import OF_NODES, Places, keep_references, references
from prefect_dstack.configurations.messages import show
from prefect_dstack.configurations.mounts import Artifact, FileMapping, Mount, Repository
from prefect_dstack.configurations.names import Image, LocalPath, Name, Shell, Text, UnixUser
from prefect_dstack.configurations.profile import ProfileKeys
from prefect_dstack.configurations.resources import Resources
from prefect_dstack.configurations.scalars import Whole, to_text

_PYTHON = re.compile(r"3\.([0-9]{1,2})")


def parse_python(value: Any) -> Any:
    """Accept a version of Python such as 3.12; a number 3.1 is 3.10, as YAML has dropped its zero."""
    text = to_text(value)
    if text == "3.1" and isinstance(value, float):
        text = "3.10"
    if not isinstance(text, str) or not _PYTHON.fullmatch(text):
        refuse(f"must be a version of Python such as 3.12, not {show(value)}")
    return text


def parse_commands(value: Any) -> Any:
    """Accept a list of commands; a single text gets a hint."""
    if isinstance(value, str):
        refuse("must be a list; put '- ' before the command")
    return value


def check_command(value: str) -> str:
    """Accept a command of any characters but NUL."""
    if not value.strip():
        refuse("is empty; write a command, or remove the line")
    return value


Command = Annotated[Text, AfterValidator(check_command)]
Commands = Annotated[tuple[Command, ...], BeforeValidator(parse_commands, json_schema_input_type=list[str])]
PythonVersion = Annotated[str, BeforeValidator(parse_python, json_schema_input_type=str | float)]


def _keep_node_references(commands: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(keep_references(command, OF_NODES) for command in commands)


NodeCommands = Annotated[Commands, AfterValidator(_keep_node_references)]
"""Commands in which `dstack` and `groups` references stay until a node starts; see `resolve_commands`."""

PRIVATE_PLACES = (
    ("env", "*"),
    ("registry_auth", "username"),
    ("registry_auth", "password"),
    ("repos", "*"),
    ("repos", "*", "url"),
)
MOUNT_PLACES = (
    ("volumes", "*"),
    ("volumes", "*", "name"),
    ("volumes", "*", "name", "*"),
    ("volumes", "*", "instance_path"),
)


class RunConfiguration(ConfigurationModel, ProfileKeys):
    """What services, tasks and development environments have in common."""

    places: ClassVar[Places] = Places(
        secrets=PRIVATE_PLACES, environment=PRIVATE_PLACES, nodes=(("env", "*"), *MOUNT_PLACES)
    )

    name: Name | None = Field(
        default=None,
        description="The name of the run; the file's name without .dstack.yml if it is not given.",
    )
    image: Image | None = Field(default=None, description="The container image to run.")
    user: UnixUser | None = Field(
        default=None,
        description="The user in the container, such as ubuntu or 1000:1000; the image's if not given.",
    )
    privileged: bool = Field(default=False, description="Whether the container runs privileged.")
    entrypoint: Text | None = Field(
        default=None, description="The entry point of the container; the image's if not given."
    )
    working_dir: LocalPath | None = Field(
        default=None, description="The directory in which the commands run; the image's if not given."
    )
    registry_auth: RegistryAuth | None = Field(
        default=None, description="The credentials of a private image registry."
    )
    python: PythonVersion | None = Field(
        default=None, description="The version of Python to run with, where no image is given."
    )
    nvcc: bool | None = Field(default=None, description="Whether the NVIDIA CUDA compiler must be there.")
    docker: bool | None = Field(
        default=None, description="Whether Docker must be usable inside the container."
    )
    single_branch: bool | None = Field(
        default=None, description="Whether only the current branch of a repository is fetched."
    )
    env: Env = Field(
        default_factory=dict,
        repr=False,
        description="The environment variables; a name without a value gets the deployer's.",
    )
    shell: Shell | None = Field(
        default=None, description="The shell that runs the commands: sh, bash or an absolute path."
    )
    resources: Resources = Field(default_factory=Resources, description="What a replica needs of a machine.")
    priority: Annotated[Whole, Field(ge=0, le=100)] | None = Field(
        default=None, description="The priority among waiting runs, from 0 to 100."
    )
    volumes: tuple[Mount, ...] = Field(
        default=(), description="The volumes and directories of the instance to mount."
    )
    files: tuple[FileMapping, ...] = Field(default=(), description="The local files to bring into the run.")
    repos: tuple[Repository, ...] = Field(
        default=(), max_length=1, description="The Git repository to check out for the run."
    )
    dstack: bool = Field(default=False, description="Whether a dstack server must be reachable from the run.")
    setup: Commands = Field(default=(), description="The older place for commands that run first.")
    build: Commands = Field(default=(), description="The older place for commands that prepare an image.")
    cache: tuple[LocalPath, ...] = Field(
        default=(), description="The older list of directories to keep between runs."
    )
    home_dir: LocalPath | None = Field(
        default=None, description="The older name of the home directory in the container."
    )
    artifacts: tuple[Artifact, ...] = Field(
        default=(), description="The older list of directories to store after the run."
    )


def check_image_source(run: Any, where: str = "") -> None:
    """Refuse more than one of `image`, `python` and `docker`, and `nvcc` beside `image` or `docker`."""
    chosen = [key for key in ("image", "python", "docker") if getattr(run, key)]
    if run.nvcc:
        chosen = [*chosen, "nvcc"] if chosen != ["python"] else chosen
    if len(chosen) > 1:
        refuse(f"cannot stand beside '{chosen[0]}'{where}; keep one of them", key=chosen[1])


def check_addresses(commands: Iterable[str], member: str, sizes: Sequence[int], key: str) -> None:
    """Refuse a reference to the address of a node or replica that the run does not have.

    Args:
        commands: The commands to check.
        member: What the run has in its groups, `nodes` or `replicas`.
        sizes: How many each group has for sure.
        key: The key of the commands.
    """
    for number, command in enumerate(commands):
        for reference in references(command):
            if reference.namespace != "groups":
                continue
            group, kind, index = reference.address
            if kind != member:
                refuse(f"{reference.path}: the groups here have {member}, not {kind}", key=f"{key}.{number}")
            if group >= len(sizes) or index >= sizes[group]:
                there = f"groups[{group}] has {sizes[group]}" if group < len(sizes) else "no such group"
                refuse(f"{reference.path}: {there}, counted from 0", key=f"{key}.{number}")


def check_something_to_run(run: Any) -> None:
    """Refuse a run without `commands` and without `image`."""
    if not run.commands and run.image is None:
        refuse("is missing; say what to run, or give an 'image' that knows", key="commands")
