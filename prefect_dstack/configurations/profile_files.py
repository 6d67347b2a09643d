"""`.dstack/profiles.yml`: of the project, and of the user."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prefect_dstack.configurations.messages import nearest, one_of, show
from prefect_dstack.configurations.problems import Problem, first_problem, validate
from prefect_dstack.configurations.profile import Profile, ProfilesFile
from prefect_dstack.configurations.sources import read_text
from prefect_dstack.configurations.yaml_source import read_yaml
from prefect_dstack.errors import ConfigurationError

_NAMES = ("profiles.yml", "profiles.yaml")


def load_profiles(directory: str | Path) -> tuple[Profile, ...]:
    """Read the profiles that a configuration in a directory may use.

    Args:
        directory: The configuration's directory. The nearest `.dstack/profiles.yml` there or in a
            parent counts, and `~/.dstack/profiles.yml`.

    Returns:
        The profiles, the project's before the user's; of two with one name, the project's.

    Raises:
        ConfigurationError: A file that cannot be accepted.
    """
    start = Path(directory).absolute()
    project = next(filter(None, map(_file_in, (start, *start.parents))), None)
    profiles: dict[str, Profile] = {}
    for file in dict.fromkeys(filter(None, (project, _file_in(_home())))):
        for profile in _read(file):
            profiles.setdefault(profile.name, profile)
    return tuple(profiles.values())


def choose_profile(profiles: Iterable[Profile], name: str | None) -> Profile | None:
    """Return the profile with a name, or without a name the default one, or None if there is none.

    Raises:
        ConfigurationError: No profile has the name.
    """
    by_name = {profile.name: profile for profile in profiles}
    if name is None:
        return next((profile for profile in by_name.values() if profile.default), None)
    if name not in by_name:
        meant = nearest(name, by_name)
        known = f"there are {one_of(by_name)}" if by_name else "there is no .dstack/profiles.yml"
        hint = f"did you mean '{meant}'?" if meant else known
        raise ConfigurationError(f"no profile {show(name)}; {hint}")
    return by_name[name]


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def _file_in(directory: Path) -> Path | None:
    for name in _NAMES:
        file = directory / ".dstack" / name
        try:
            if file.is_file():
                return file
        except OSError:
            return None
    return None


def _read(file: Path) -> tuple[Profile, ...]:
    document = read_yaml(read_text(file), str(file))
    if document.data is None:
        return ()
    if not isinstance(document.data, dict):
        problem = Problem((), "must be a mapping with 'profiles:', a list of profiles")
        raise first_problem([problem], document)
    return validate(ProfilesFile, document.data, document).profiles
