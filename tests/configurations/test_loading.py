"""Where configurations come from, what they are called, and which profile they get."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.templating import apply_values

from prefect_dstack.configurations import (
    GatewayConfiguration,
    Profile,
    ServiceConfiguration,
    TaskConfiguration,
    load_configuration,
    load_profiles,
    relocated,
    secret_names,
)
from prefect_dstack.configurations.sources import slug
from prefect_dstack.errors import ConfigurationError, NotFoundError

TEXT = "type: service\nport: 8000\nimage: nginx\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "home"
    directory.mkdir()
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.chdir(directory)
    return directory


def write(path: Path, text: str = TEXT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("hello.dstack.yml", "hello"),
        ("Hello_World.dstack.yaml", "hello-world"),
        ("serve.yml", "serve"),
        ("my.model.dstack.yml", "my-model"),
        ("project/.dstack.yml", "project"),
        ("My Project/.dstack.yml", "my-project"),
        ("noext", "noext"),
        ("123.dstack.yml", None),
        ("3d-model.dstack.yml", "d-model"),
        ("x" * 60 + ".yml", "x" * 40),
    ],
)
def test_the_name_comes_from_the_file(tmp_path: Path, file: str, name: str | None) -> None:
    loaded = load_configuration(write(tmp_path / file))
    assert loaded.name == name
    assert loaded.directory == (tmp_path / file).parent
    assert loaded.source_name == str(tmp_path / file)


def test_a_written_name_counts_more_than_the_files_and_a_given_one_most(tmp_path: Path) -> None:
    file = write(tmp_path / "hello.dstack.yml", TEXT + "name: chat\n")
    assert load_configuration(file).name == "chat"
    assert load_configuration(file, name="other").name == "other"
    assert load_configuration(load_configuration(file), name="other").name == "other"


@pytest.mark.parametrize(
    "source", [TEXT, "{type: service, port: 8000, image: nginx}", TEXT.replace("\n", "\r\n")]
)
def test_text_is_told_from_a_path(source: str, home: Path) -> None:
    loaded = load_configuration(source)
    assert isinstance(loaded, ServiceConfiguration)
    assert (loaded.name, loaded.directory, loaded.source_name) == (None, home, "<text>")


def test_a_byte_order_mark_is_no_trouble(tmp_path: Path) -> None:
    file = tmp_path / "bom.dstack.yml"
    file.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert load_configuration(file).name == "bom"


def test_a_relative_path_and_a_home(tmp_path: Path, home: Path) -> None:
    write(home / "serve.dstack.yml")
    loaded = load_configuration("serve.dstack.yml")
    assert loaded.directory == home
    assert loaded.source_name == "serve.dstack.yml"


def test_a_model_is_returned_as_it_is() -> None:
    model = TaskConfiguration(commands=["echo '${{ this is data }}'"])
    assert load_configuration(model) is model
    assert load_configuration(model.model_dump(mode="json", exclude_unset=True)) == model


def test_a_model_given_another_directory_is_otherwise_the_same(tmp_path: Path) -> None:
    file = write(tmp_path / "a" / "serve.dstack.yml")
    loaded = load_configuration(file)
    moved = relocated(loaded, tmp_path / "b")
    assert moved == loaded
    assert moved.directory == tmp_path / "b"
    assert load_configuration(loaded, directory=tmp_path / "b").directory == tmp_path / "b"
    assert load_configuration({"type": "task", "image": "a"}, directory=tmp_path).directory == tmp_path


def test_paths_start_from_where_a_mapping_was_loaded(tmp_path: Path, home: Path) -> None:
    loaded = [load_configuration({"type": "task", "image": "a"}), load_configuration(TEXT)]
    os.chdir(tmp_path)
    assert [one.directory for one in loaded] == [home, home]


def test_lines_are_kept_for_later_messages(tmp_path: Path) -> None:
    loaded = load_configuration(write(tmp_path / "a.yml", TEXT + "resources:\n  gpu: A100:2\n"))
    assert loaded.line_of("port") == 2
    assert loaded.line_of("resources.gpu.name") == 5
    assert loaded.line_of("retain") is None
    assert ServiceConfiguration(port=80, image="a").line_of("port") is None


def test_a_configuration_survives_pickling(tmp_path: Path) -> None:
    loaded = load_configuration(write(tmp_path / "a.yml", TEXT + "replicas: 2\nresources: {memory: 2GB}\n"))
    again = pickle.loads(pickle.dumps(loaded))
    assert again == loaded
    assert again.directory == tmp_path
    assert again.line_of("port") == 2


def test_configurations_cannot_be_changed() -> None:
    loaded = load_configuration(TEXT)
    with pytest.raises(ValueError, match="frozen"):
        loaded.name = "other"  # type: ignore[misc]


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGINX_TAG", "1.27")
    loaded = load_configuration(TEXT.replace("nginx", "nginx:${{ env.NGINX_TAG }}"))
    assert isinstance(loaded, ServiceConfiguration)
    assert loaded.image == "nginx:1.27"


@pytest.mark.parametrize(("environ", "project"), [({}, "main"), ({"DSTACK_PROJECT": "blue"}, "blue")])
def test_the_project_is_that_of_the_environment(environ: dict[str, str], project: str) -> None:
    text = "type: gateway\ndomain: '*.${{ run.project_name }}.example.com'\n"
    loaded = load_configuration(text, environ=environ)
    assert isinstance(loaded, GatewayConfiguration)
    assert loaded.domain == f"{project}.example.com"


def test_variables_of_prefect_are_looked_up_by_the_caller() -> None:
    known = {"tag": "1.27", "replicas": "2", "odd": "${{ secrets.NO }}"}

    def variables(name: str) -> str:
        if name not in known:
            raise NotFoundError(f"there is no Prefect variable '{name}'")
        return known[name]

    text = (
        "type: service\nport: 80\nimage: nginx:${{ prefect.variables.tag }}\n"
        "replicas: ${{ prefect.variables.replicas }}\nenv: {ODD: '${{ prefect.variables.odd }}'}\n"
    )
    loaded = load_configuration(text, variables=variables)
    assert isinstance(loaded, ServiceConfiguration)
    assert (loaded.image, loaded.replica_count) == ("nginx:1.27", 2)
    assert secret_names(loaded) == set()
    assert load_configuration(loaded.model_dump(mode="json", exclude_unset=True)) == loaded
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(text.replace("variables.tag", "variables.tga"), variables=variables)
    assert str(caught.value) == "<text>:3: image: there is no Prefect variable 'tga'"


class TestTemplated:
    """What Prefect makes of the parameters of a deployment in `prefect.yaml`."""

    def deployed(self, source: Any) -> Any:
        # As `prefect deploy` does it: first the environment, then the outputs of the build steps.
        first: Any = apply_values({"parameters": {"configuration": source}}, {}, remove_notset=False)
        return apply_values(first, {}, skip_prefixes=["ctx."])["parameters"]["configuration"]

    @pytest.mark.parametrize(
        ("keys", "key"),
        [
            ({"env": {"V": "${{ secrets.X }}"}}, "env.V"),
            ({"env": {"V": "http://me:${{ secrets.X }}@db/app"}}, "env.V"),
            ({"env": ["A=1", "V=${{ secrets.X }}"]}, "env.1"),
            ({"env": {"V": "${{ env.V }}"}}, "env.V"),
            ({"registry_auth": {"username": "me", "password": "${{ secrets.X }}"}}, "registry_auth.password"),
            ({"image": "nginx:${{ prefect.tag }}"}, "image"),
            ({"commands": ["serve ${{ run.args }}"]}, "commands.0"),
            ({"commands": ["serve --name=${{ run.name }}; true"]}, "commands.0"),
        ],
    )
    def test_a_reference_of_which_only_the_dollar_is_left_is_refused(
        self, keys: dict[str, Any], key: str
    ) -> None:
        source = self.deployed({"type": "service", "port": 80, "image": "a", **keys})
        with pytest.raises(ConfigurationError) as caught:
            load_configuration(source, templated=True)
        assert str(caught.value) == (
            f"<mapping>: {key}: has a '$' alone, as Prefect leaves it of a reference such as "
            "${{ secrets.NAME }} in prefect.yaml, where it fills in {{ … }} itself; put the configuration "
            "into a file, and give its path instead"
        )

    def test_so_it_is_in_text(self) -> None:
        text = self.deployed(TEXT + "env:\n  V: ${{ secrets.X }}\n")
        with pytest.raises(ConfigurationError, match=r"<text>:5: env\.V: has a '\$' alone"):
            load_configuration(text, templated=True)

    def test_other_dollars_are_no_matter(self) -> None:
        keys = {
            "env": {"A": "$HOME ${HOME} $(date) $1"},
            "commands": ["grep -q 'ok$' log", 'echo $? $$ $@ "$HOME"', "serve $PORT"],
        }
        source = self.deployed({"type": "service", "port": 80, "image": "a", **keys})
        assert load_configuration(source, templated=True) == load_configuration(source)

    def test_a_file_is_not_filled_in_and_so_not_searched(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.yml", TEXT + "env: {PS1: '$ '}\n")
        assert load_configuration(file, templated=True) == load_configuration(file)

    def test_what_was_recorded_is_not_searched_either(self) -> None:
        loaded = load_configuration(TEXT + "env: {PS1: '$ '}\n")
        assert load_configuration(loaded.model_dump(mode="json", exclude_unset=True)) == loaded


PROFILES = """\
profiles:
  - name: cheap
    default: true
    spot_policy: spot
    max_price: 1
    max_duration: 2h
  - name: big
    resources: {memory: 64GB..}
    regions: [eu-west-1]
"""


def test_the_default_profile_lies_beneath_the_configuration(tmp_path: Path) -> None:
    write(tmp_path / "p" / ".dstack" / "profiles.yml", PROFILES)
    loaded = load_configuration(write(tmp_path / "p" / "deep" / "a.dstack.yml", TEXT + "max_price: 2\n"))
    assert isinstance(loaded, ServiceConfiguration)
    assert (loaded.spot_policy, loaded.max_price, loaded.max_duration) == ("spot", 2, 7200)
    assert (loaded.name, loaded.regions) == ("a", None)


def test_a_named_profile_takes_the_place_of_the_default(tmp_path: Path) -> None:
    write(tmp_path / ".dstack" / "profiles.yml", PROFILES)
    loaded = load_configuration(write(tmp_path / "a.dstack.yml"), profile="big")
    assert isinstance(loaded, ServiceConfiguration)
    assert loaded.resources.memory is not None
    assert loaded.resources.memory.min == 64
    assert loaded.spot_policy is None


def test_the_users_profiles_are_there_too_and_the_projects_count_more(tmp_path: Path, home: Path) -> None:
    write(
        home / ".dstack" / "profiles.yml",
        "profiles: [{name: mine, max_price: 9}, {name: big, max_price: 8}]\n",
    )
    write(tmp_path / "p" / ".dstack" / "profiles.yml", PROFILES)
    profiles = load_profiles(tmp_path / "p")
    assert [profile.name for profile in profiles] == ["cheap", "big", "mine"]
    assert all(isinstance(profile, Profile) for profile in profiles)
    assert profiles[1].max_price is None
    assert [profile.name for profile in load_profiles(home)] == ["mine", "big"]
    assert [profile.name for profile in load_profiles(tmp_path / "nowhere")] == ["mine", "big"]


def test_a_mapping_gets_no_profile_unless_it_is_named(tmp_path: Path) -> None:
    write(tmp_path / ".dstack" / "profiles.yml", PROFILES)
    mapping = {"type": "service", "port": 80, "image": "a"}
    plain = load_configuration(mapping, directory=tmp_path)
    named = load_configuration(mapping, directory=tmp_path, profile="cheap")
    assert isinstance(plain, ServiceConfiguration)
    assert isinstance(named, ServiceConfiguration)
    assert (plain.spot_policy, named.spot_policy) == (None, "spot")


def test_gateways_and_ssh_fleets_have_no_profile(tmp_path: Path) -> None:
    write(tmp_path / ".dstack" / "profiles.yml", PROFILES)
    assert isinstance(load_configuration(write(tmp_path / "g.yml", "type: gateway\n")), GatewayConfiguration)
    fleet = load_configuration(write(tmp_path / "f.yml", "type: fleet\nssh_config: {hosts: [a]}\n"))
    assert fleet.model_dump()["spot_policy"] is None
    cloud = load_configuration(write(tmp_path / "c.yml", "type: fleet\nnodes: 1\n"))
    assert cloud.model_dump()["spot_policy"] == "spot"


@pytest.mark.parametrize(
    ("profiles", "profile", "expected"),
    [
        (PROFILES, "bigg", "no profile 'bigg'; did you mean 'big'?"),
        (PROFILES, "zzz", "no profile 'zzz'; there are cheap or big"),
        ("", "any", "no profile 'any'; there is no .dstack/profiles.yml"),
        ("- a\n", None, "profiles.yml:1: must be a mapping with 'profiles:', a list of profiles"),
        ("profiles: [{max_price: 1}]\n", None, "profiles.yml:1: profiles.0.name: is missing; add 'name: …'"),
        ("profiles:\n - name: a\n   prize: 1\n", None, "profiles.yml:3: profiles.0.prize: unknown key"),
        (
            "profiles:\n - name: a\n   resources: {gpu: '::'}\n",
            None,
            "profiles.yml:3: profiles.0.resources.gpu: ",
        ),
    ],
)
def test_profiles_that_are_wrong(tmp_path: Path, profiles: str, profile: str | None, expected: str) -> None:
    write(tmp_path / ".dstack" / "profiles.yml", profiles)
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(write(tmp_path / "a.dstack.yml"), profile=profile)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_profile_holds_no_references(tmp_path: Path) -> None:
    write(tmp_path / ".dstack" / "profiles.yml", "profiles: [{name: a, pool_name: '${{ env.WHO }}'}]\n")
    loaded = load_configuration(write(tmp_path / "a.yml"), profile="a", environ={"WHO": "me"})
    assert isinstance(loaded, ServiceConfiguration)
    assert loaded.pool_name == "${{ env.WHO }}"


@pytest.mark.parametrize(("text", "name"), [("--a--", "a"), ("Ärger", "rger"), ("", None), ("42", None)])
def test_slugs(text: str, name: str | None) -> None:
    assert slug(text) == name
