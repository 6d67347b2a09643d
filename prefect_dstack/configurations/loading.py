"""From what a person wrote to a configuration."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from prefect_dstack.configurations.base import ConfigurationModel
from prefect_dstack.configurations.dev_environment import DevEnvironmentConfiguration
from prefect_dstack.configurations.environment import parse_environment
from prefect_dstack.configurations.fleet import FleetConfiguration
from prefect_dstack.configurations.gateway import GatewayConfiguration
from prefect_dstack.configurations.interpolation import (
    DEFAULT_PROJECT,
    Interpolator,
    escape_literals,
    lost_references,
)
from prefect_dstack.configurations.messages import dotted, nearest, one_of, show
from prefect_dstack.configurations.names import parse_name
from prefect_dstack.configurations.problems import Problem, first_problem, printable_source, validate
from prefect_dstack.configurations.profile_files import choose_profile, load_profiles
from prefect_dstack.configurations.scalars import to_text
from prefect_dstack.configurations.service import ServiceConfiguration
from prefect_dstack.configurations.sources import check_texts, open_source
from prefect_dstack.configurations.task import TaskConfiguration
from prefect_dstack.configurations.volume import VolumeConfiguration
from prefect_dstack.configurations.yaml_source import Document
from prefect_dstack.errors import ConfigurationError

Configuration: TypeAlias = (
    ServiceConfiguration
    | TaskConfiguration
    | DevEnvironmentConfiguration
    | GatewayConfiguration
    | FleetConfiguration
    | VolumeConfiguration
)
MODELS: dict[str, type[ConfigurationModel]] = {
    "service": ServiceConfiguration,
    "task": TaskConfiguration,
    "dev-environment": DevEnvironmentConfiguration,
    "gateway": GatewayConfiguration,
    "fleet": FleetConfiguration,
    "volume": VolumeConfiguration,
}
_OTHER_KINDS = {
    "preset": "presets are made by dstack itself; write the service, with its image and commands",
}
_WITH_PROFILE = ("service", "task", "dev-environment", "fleet")
_PROFILE_ONLY = ("name", "default", "project")


def load_configuration(
    source: str | Path | Mapping[str, Any] | Configuration,
    *,
    name: str | None = None,
    args: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    profile: str | None = None,
    directory: str | Path | None = None,
    variables: Callable[[str], str] | None = None,
    templated: bool = False,
) -> Configuration:
    """Read and check a configuration.

    Relative paths in a file start from the file's directory. YAML text and a mapping have none: their paths
    start from the current directory, unless `directory` says another.

    Args:
        source: A path; YAML text (more than one line, or a mapping with `type`); a mapping; or a model,
            which is returned as it is. A dumped configuration, a mapping, gives itself back.
        name: Overrides the configuration's name. Without both, it is made from the file's name.
        args: What `${{ run.args }}` stands for.
        environ: The deployer's environment for `${{ env.NAME }}`; `os.environ` if not given.
        profile: The name of a profile whose keys are used where the configuration has none. If not given,
            a file or text gets the default profile, if there is one; a mapping gets none.
        directory: What relative paths start from, and where profiles are looked for, instead of the
            file's directory; of YAML text and mappings, instead of the directory that this is called in.
        variables: Gives the value of a Prefect variable by its name, for `${{ prefect.variables.NAME }}`, or
            raises `NotFoundError`. Without it, such a reference is refused.
        templated: Whether Prefect's templating may have gone over the text or mapping, as it does with the
            parameters in `prefect.yaml`. It fills in `{{ … }}` with nothing; where only the dollar of a
            reference is left, the configuration is refused.

    Returns:
        A frozen model. What is only known at launch stays a reference in it, such as `${{ secrets.NAME }}`.

    Raises:
        ConfigurationError: One line that says what is wrong, where, and what to do.

    Example:
        >>> load_configuration({"type": "service", "port": 8000, "image": "nginx"}, name="web").name
        'web'
    """
    placed = None if directory is None else Path(directory).absolute()
    if name is not None:
        _check_name(name)
    if isinstance(source, ConfigurationModel):
        named = source if name is None else source.model_copy(update={"name": name})
        return named if placed is None else named.moved(placed)
    opened = open_source(source)
    document = opened.document
    data = _checked_mapping(document)
    if templated and not opened.is_file:
        _refuse_lost_references(data, document)
    model = MODELS[_type_of(document, data)]
    from_profile = _profile_keys(
        data, model, profile, placed or opened.directory, by_default=opened.is_written
    )
    data = {**from_profile, **data}
    if name is not None or (data.get("name") is None and opened.name is not None):
        data["name"] = name or opened.name
    data = _interpolated(
        data,
        model,
        document,
        environ=os.environ if environ is None else environ,
        args=args,
        variables=variables,
        by_deployer=opened.is_written,
    )
    loaded = validate(model, data, document)
    return loaded.placed(  # type: ignore[return-value]
        directory=placed or opened.directory or Path.cwd(),
        source_name=printable_source(document.source),
        lines={dotted(path): line for path, line in document.lines.items()},
    )


def relocated(configuration: Configuration, directory: str | Path) -> Configuration:
    """Return the same configuration with relative paths starting from another directory."""
    return configuration.moved(Path(directory).absolute())


def _check_name(name: str) -> None:
    try:
        parse_name(name)
    except ValueError as error:
        raise ConfigurationError(str(error), key="name") from None


def _checked_mapping(document: Document) -> dict[str, Any]:
    data = document.data
    if data is None or data == {}:
        raise ConfigurationError(
            "is empty; start with 'type: service'", source=printable_source(document.source)
        )
    if not isinstance(data, dict):
        text = f"must be a mapping that starts with 'type: service', not {show(data)}"
        raise first_problem([Problem((), text)], document)
    _refuse_what_is_not_text(data, document)
    return data


def _refuse_lost_references(data: dict[str, Any], document: Document) -> None:
    problem = (
        "has a '$' alone, as Prefect leaves it of a reference such as ${{ secrets.NAME }} in prefect.yaml, "
        "where it fills in {{ … }} itself; put the configuration into a file, and give its path instead"
    )
    lost = [Problem(path, problem) for path in lost_references(data)]
    if lost:
        raise first_problem(lost[:1], document)


def _refuse_what_is_not_text(data: dict[str, Any], document: Document) -> None:
    bad = check_texts(data)
    if bad is not None:
        raise first_problem([Problem(bad, "has a character that is not text (NUL or half a pair)")], document)


def _type_of(document: Document, data: dict[str, Any]) -> str:
    if "type" not in data:
        slip = nearest("type", data)
        if slip:
            raise first_problem([Problem((slip,), "unknown key, did you mean 'type'?")], document)
        problem = Problem(("type",), f"is missing; add 'type: service' (or {one_of(list(MODELS)[1:])})")
        raise first_problem([problem], document)
    kind = data["type"]
    if isinstance(kind, str) and kind in _OTHER_KINDS:
        raise first_problem([Problem(("type",), _OTHER_KINDS[kind])], document)
    if not isinstance(kind, str) or kind not in MODELS:
        meant = nearest(kind.lower(), MODELS) if isinstance(kind, str) else None
        hint = f"; did you mean '{meant}'?" if meant else ""
        problem = Problem(("type",), f"must be {one_of(MODELS)}, not {show(kind)}{hint}")
        raise first_problem([problem], document)
    return kind


def _profile_keys(
    data: dict[str, Any],
    model: type[ConfigurationModel],
    name: str | None,
    directory: Path | None,
    *,
    by_default: bool,
) -> dict[str, Any]:
    has_profile = data["type"] in _WITH_PROFILE and "ssh_config" not in data
    if not has_profile or (name is None and not by_default):
        return {}
    chosen = choose_profile(load_profiles(directory or Path.cwd()), name)
    if chosen is None:
        return {}
    keys = chosen.model_dump(mode="json", exclude_unset=True, exclude=set(_PROFILE_ONLY))
    return {key: escape_literals(value, ()) for key, value in keys.items() if key in model.model_fields}


def _interpolated(
    data: dict[str, Any],
    model: type[ConfigurationModel],
    document: Document,
    *,
    environ: Mapping[str, str],
    args: Sequence[str],
    variables: Callable[[str], str] | None,
    by_deployer: bool,
) -> dict[str, Any]:
    problems: list[tuple[tuple[str | int, ...], str]] = []

    def interpolator(run_name: str | None) -> Interpolator:
        return Interpolator(
            own_env=_own_env(data),
            environ=environ,
            run={
                "name": run_name,
                "args": shlex.join(args),
                "project_name": environ.get("DSTACK_PROJECT") or DEFAULT_PROJECT,
            },
            variables=variables,
            places=model.places,
            by_deployer=by_deployer,
        )

    run_name = interpolator(None).fill(data.get("name"), problems, ("name",))
    if not problems:
        filler = interpolator(run_name if isinstance(run_name, str) else None)
        data = filler.fill({**data, "name": run_name} if "name" in data else data, problems)
    if problems:
        raise first_problem([Problem(path, text) for path, text in problems], document)
    _refuse_what_is_not_text(data, document)
    return data


def _own_env(data: dict[str, Any]) -> dict[str, str | None]:
    try:
        env = parse_environment(data.get("env"))
    except ValueError:
        return {}
    if not isinstance(env, dict):
        return {}
    texts = {key: to_text(value) for key, value in env.items()}
    return {key: text for key, text in texts.items() if text is None or isinstance(text, str)}
