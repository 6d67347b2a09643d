"""What is filled in at a launch: what is plain, what is secret, and what is missing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.configurations import (
    Configuration,
    NodeFacts,
    RegistryCredentials,
    ServiceConfiguration,
    TaskConfiguration,
    awaited_addresses,
    deployer_variables,
    load_configuration,
    node_references,
    private_references,
    resolve_commands,
    resolve_environment,
    resolve_gateway,
    resolve_mounts,
    resolve_probes,
    resolve_registry_auth,
    resolve_repository,
)
from prefect_dstack.errors import ConfigurationError, NotFoundError

SECRETS = {
    "TOKEN": "hunter2",
    "USER": "me",
    "GW": " gw.example.com\n",
    "BAD": "a b\nhttp-request deny",
    "NUL": "a\0b",
}


def lookup(name: str) -> str:
    if name not in SECRETS:
        raise NotFoundError(f"no secret {name}")
    return SECRETS[name]


def service(**keys: Any) -> ServiceConfiguration:
    loaded = load_configuration({"type": "service", "port": 80, "image": "a", **keys}, environ={})
    assert isinstance(loaded, ServiceConfiguration)
    return loaded


@pytest.mark.parametrize(
    "env",
    [
        {"A": "1", "B": 2, "C": "x=y", "D": "", "E": None, "F": True, "G": "${{ secrets.TOKEN }}"},
        ["A=1", "B=2", "C=x=y", "D=", "E", "F=true", "G=${{ secrets.TOKEN }}"],
    ],
)
def test_a_mapping_and_a_list_say_the_same(env: Any) -> None:
    resolved = resolve_environment(service(env=env), lookup, {"E": "deployed"})
    assert resolved.plain == {"A": "1", "B": "2", "C": "x=y", "D": "", "F": "true"}
    assert {name: value.get_secret_value() for name, value in resolved.secret.items()} == {
        "E": "deployed", "G": "hunter2",
    }  # fmt: skip
    assert resolved.reveal() == {**resolved.plain, "E": "deployed", "G": "hunter2"}


def test_values_are_texts_as_they_were_typed() -> None:
    loaded = load_configuration(
        "type: task\nimage: a\nenv:\n"
        "  V: 1.10\n  X: 0x1F\n  T: True\n  Y: yes\n  D: 2024-01-02\n  P: 8001:8000\n"
    )
    assert resolve_environment(loaded, lookup, {}).plain == {
        "V": "1.10", "X": "0x1F", "T": "true", "Y": "yes", "D": "2024-01-02", "P": "8001:8000",
    }  # fmt: skip


def test_nothing_secret_is_in_a_repr() -> None:
    loaded = service(
        env={"A": "${{ secrets.TOKEN }}", "B": "literal-token"}, registry_auth={"password": "literal-pw"}
    )
    resolved = resolve_environment(loaded, lookup, {})
    credentials = resolve_registry_auth(loaded, lookup)
    shown = f"{resolved!r} {resolved} {credentials!r} {loaded!r} {loaded}"
    assert "hunter2" not in shown
    assert "literal" not in shown.replace("'B': 'literal-token'", "")


def test_a_bare_name_that_is_not_set_says_what_to_do() -> None:
    loaded = load_configuration("type: task\nimage: a\nenv:\n  HF_TOKEN:\n")
    with pytest.raises(ConfigurationError) as caught:
        resolve_environment(loaded, lookup, {})
    assert str(caught.value) == (
        "<text>:4: env.HF_TOKEN: has no value and is not in the environment; "
        "run 'export HF_TOKEN=…', or give it one"
    )


def test_an_unknown_secret_is_told_with_the_place_that_asks_for_it() -> None:
    loaded = load_configuration("type: task\nimage: a\nenv:\n  A: ${{ secrets.NONE }}\n")
    with pytest.raises(ConfigurationError) as caught:
        resolve_environment(loaded, lookup, {})
    assert str(caught.value) == "<text>:4: env.A: no secret NONE"


def test_a_secret_that_no_environment_can_hold_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigurationError, match="NUL character"):
        resolve_environment(service(env={"A": "${{ secrets.NUL }}"}), lookup, {})


def test_registry_credentials() -> None:
    assert resolve_registry_auth(service(), lookup) is None
    loaded = service(registry_auth={"username": "${{ secrets.USER }}", "password": "x-${{ secrets.TOKEN }}"})
    credentials = resolve_registry_auth(loaded, lookup)
    assert isinstance(credentials, RegistryCredentials)
    assert (credentials.username, credentials.password.get_secret_value()) == ("me", "x-hunter2")


@pytest.mark.parametrize(
    ("written", "resolved"),
    [(None, None), (True, True), (False, False), ("yes", True), ("off", False), ("main", "main"),
     ("a/main", "a/main"), ("23.100.30.60", "23.100.30.60"), ("my.domain.com", "my.domain.com"),
     ("${{ secrets.GW }}", "gw.example.com"),
     ({"project": "a", "name": "main"}, "a/main")],
)  # fmt: skip
def test_gateways(written: Any, resolved: Any) -> None:
    assert resolve_gateway(service(gateway=written), lookup) == resolved


def test_the_secret_of_a_gateway_is_checked_as_if_it_had_been_written() -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_gateway(service(gateway="${{ secrets.BAD }}"), lookup)
    assert str(caught.value) == (
        "<mapping>: gateway: its secret holds neither the name nor the address of a gateway"
    )


@given(
    st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,6}", fullmatch=True), st.text(max_size=12), max_size=4)
)
def test_any_plain_text_arrives_as_it_was(env: dict[str, str]) -> None:
    escaped = {name: value.replace("${{", "$${{").replace("\0", "") for name, value in env.items()}
    loaded = service(env=escaped)
    assert resolve_environment(loaded, lookup, {}).plain == {n: v.replace("\0", "") for n, v in env.items()}


def revealed(configuration: Configuration, environ: dict[str, str], **options: Any) -> dict[str, str]:
    return resolve_environment(configuration, lookup, environ, **options).reveal()


class TestDeployersEnvironment:
    @pytest.mark.parametrize("env", [{"A": "${{ env.A }}"}, ["A=${{env.A}}"], ["A"], {"A": None}])
    def test_is_meant_by_a_variable_that_is_itself(self, env: Any) -> None:
        loaded = load_configuration({"type": "task", "image": "a", "env": env}, environ={"A": "at load"})
        assert isinstance(loaded, TaskConfiguration)
        assert loaded.env == {"A": None}
        resolved = resolve_environment(loaded, lookup, {"A": "at launch"})
        assert resolved.plain == {}
        assert resolved.secret["A"].get_secret_value() == "at launch"

    @pytest.mark.parametrize(
        ("env", "expected"),
        [
            ({"PATH": "/x:${{ env.PATH }}"}, {"PATH": "/x:/bin"}),
            (["PATH=/x:${{ env.PATH }}"], {"PATH": "/x:/bin"}),
            ({"P": "<${{ env.PATH }}>"}, {"P": "</bin>"}),
            ({"P": "${{ env.Q }}", "Q": "${{ env.PATH }}"}, {"P": "/bin", "Q": "/bin"}),
            ({"P": "${{ env.PATH }}", "PATH": "/x:${{ env.PATH }}"}, {"P": "/x:/bin", "PATH": "/x:/bin"}),
            ({"P": "${{ env.T }}", "T": "${{ secrets.TOKEN }}"}, {"P": "hunter2", "T": "hunter2"}),
            (
                {"P": "${{ env.discovery.type }}", "discovery.type": "one"},
                {"P": "one", "discovery.type": "one"},
            ),
        ],
    )
    def test_is_read_at_launch_and_kept_secret(self, env: Any, expected: dict[str, str]) -> None:
        loaded = service(env=env)
        assert "/bin" not in str(loaded.model_dump())
        assert revealed(loaded, {"PATH": "/bin"}) == expected
        again = load_configuration(loaded.model_dump(mode="json", exclude_unset=True), environ={"PATH": "no"})
        assert again == loaded
        assert revealed(again, {"PATH": "/bin"}) == expected
        private = resolve_environment(loaded, lookup, {"PATH": "/bin"}).secret
        assert {name for name, value in expected.items() if value != "one"} <= private.keys()

    def test_gives_credentials_whether_env_lists_them_or_not(self) -> None:
        auth = {"username": "$oauthtoken", "password": "${{ env.NGC_API_KEY }}"}
        for env, secret in (
            ({}, "at launch"),
            (["NGC_API_KEY"], "at launch"),
            ({"NGC_API_KEY": "${{ env.NGC_API_KEY }}"}, "at launch"),
            ({"NGC_API_KEY": "written"}, "written"),
            ({"NGC_API_KEY": "${{ secrets.TOKEN }}"}, "hunter2"),
        ):
            loaded = service(env=env, registry_auth=auth)
            credentials = resolve_registry_auth(loaded, lookup, {"NGC_API_KEY": "at launch"})
            assert credentials is not None
            assert (credentials.username, credentials.password.get_secret_value()) == ("$oauthtoken", secret)

    def test_that_lacks_a_name_says_where_it_is_asked_for(self) -> None:
        text = "type: task\nimage: a\nregistry_auth:\n  username: me\n  password: ${{ env.NGC_KEY }}\n"
        loaded = load_configuration(text, environ={"NGC_KEY": "at load"})
        with pytest.raises(ConfigurationError) as caught:
            resolve_registry_auth(loaded, lookup, {})
        assert str(caught.value) == (
            "<text>:5: registry_auth.password: env.NGC_KEY is not in the environment; "
            "run 'export NGC_KEY=…', or give it one"
        )
        with pytest.raises(ConfigurationError, match="did you mean NGC_KEYS"):
            resolve_registry_auth(loaded, lookup, {"NGC_KEYS": ""})

    def test_is_asked_at_once_where_a_person_has_just_written_the_file(self) -> None:
        text = "type: task\nimage: a\nenv:\n  A: ${{ env.NGC_KEY }}\n  B: ${{ env.B }}\n  C:\n"
        with pytest.raises(ConfigurationError) as caught:
            load_configuration(text, environ={"NGC_KEYS": ""})
        assert str(caught.value) == (
            "<text>:4: env.A: env.NGC_KEY is set neither under 'env' nor in the environment; "
            "did you mean NGC_KEYS?"
        )
        assert deployer_variables(load_configuration(text, environ={"NGC_KEY": ""})) == {"NGC_KEY", "B", "C"}

    def test_is_listed_for_whoever_has_to_keep_it(self) -> None:
        loaded = service(
            env={"A": None, "B": "x${{ env.B }}", "C": "${{ env.OTHER }}", "D": "plain", "E": "${{ env.D }}"},
            registry_auth={"username": "me", "password": "${{ env.KEY }}"},
            probes=[{"headers": {"X-Key": "${{ env.A }}"}}],
        )
        assert deployer_variables(loaded) == {"A", "B", "OTHER", "KEY"}

    @pytest.mark.parametrize("length", [3, 20])
    def test_cannot_make_a_value_grow_beyond_all_bounds(self, length: int) -> None:
        env = {f"A{n}": f"${{{{ env.A{n + 1} }}}}" * 10 for n in range(length)} | {f"A{length}": None}
        environ = {f"A{length}": "x" * 5000}
        with pytest.raises(ConfigurationError, match="longer than 1 MiB"):
            resolve_environment(service(env=env) if length < 4 else by_hand(env), lookup, environ)

    def test_does_not_go_round_in_circles(self) -> None:
        with pytest.raises(ConfigurationError, match="refers to itself"):
            resolve_environment(by_hand({"A": "${{ env.B }}", "B": "${{ env.A }}"}), lookup, {})

    @given(st.text(max_size=12), st.text(max_size=12))
    def test_brings_any_text_as_it_is(self, before: str, value: str) -> None:
        written = before.replace("${{", "$${{").replace("\0", "").rstrip("$") + "${{ env.X }}"
        loaded = service(env={"A": written})
        expected = before.replace("\0", "").rstrip("$") + value.replace("\0", "")
        assert revealed(loaded, {"X": value.replace("\0", "")})["A"] == expected


def by_hand(env: dict[str, str | None]) -> ServiceConfiguration:
    return ServiceConfiguration(port=80, image="a", env=env)


class TestProbes:
    def test_are_filled_in(self) -> None:
        loaded = service(
            env={"KEY": None},
            probes=[
                {"url": "/h?k=${{ env.KEY }}", "headers": {"X-Key": "Bearer ${{ secrets.TOKEN }}"}},
                {
                    "method": "post",
                    "body": "{${{ env.KEY }}}",
                    "headers": [{"name": "A", "value": "${{env.KEY}}"}],
                },
                {"type": "tcp"},
            ],
        )
        first, second, third = resolve_probes(loaded, lookup, {"KEY": "s3cret"}) or ()
        assert (first.url, first.headers[0].value) == ("/h?k=s3cret", "Bearer hunter2")
        assert (second.body, second.headers[0].value) == ("{s3cret}", "s3cret")
        assert third.type == "tcp"
        assert "s3cret" not in repr(second)
        assert "hunter2" not in repr(first)
        assert resolve_probes(service(), lookup) is None

    @pytest.mark.parametrize("value", ["a b", "a\nHost: x", "ä"])
    def test_cannot_be_made_to_send_what_no_file_could_say(self, value: str) -> None:
        loaded = service(probes=[{"url": "/${{ env.K }}"}])
        with pytest.raises(ConfigurationError) as caught:
            resolve_probes(loaded, lookup, {"K": value})
        assert str(caught.value) == (
            "<mapping>: probes.0.url: what it is filled in with cannot be sent in a request"
        )

    @pytest.mark.parametrize("url", ["h${{ env.K }}", "/ ${{ env.K }}", "/${{ env.K }}\n"])
    def test_are_checked_around_their_references(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="must be a path"):
            service(probes=[{"url": url}])

    def test_are_listed_by_key(self) -> None:
        loaded = service(probes=[{"url": "/a"}, {"headers": {"X": "${{ secrets.TOKEN }}"}}])
        ((key, reference),) = private_references(loaded, "probes")
        assert (key, reference.path) == ("probes.1.headers.0.value", "secrets.TOKEN")


class TestNodes:
    facts = NodeFacts(
        node_rank=2, job_num=2, replica_num=1, nodes_num=4, master_node_ip="10.0.0.1",
        addresses=(("10.0.0.1", None), ("10.0.0.3",)),
    )  # fmt: skip

    def task(self, **keys: Any) -> TaskConfiguration:
        loaded = load_configuration({"type": "task", "image": "a", "nodes": 4, **keys}, environ={})
        assert isinstance(loaded, TaskConfiguration)
        assert load_configuration(loaded.model_dump(mode="json", exclude_unset=True)) == loaded
        return loaded

    def test_learn_who_they_are(self) -> None:
        loaded = self.task(
            commands=["run ${{ dstack.node_rank }}/${{ dstack.nodes_num }} ${{ dstack.master_node_ip }}"],
            env={"R": "r${{ dstack.replica_num }}", "S": "${{ env.R }}", "T": "${{ secrets.TOKEN }}"},
        )
        assert resolve_commands(loaded, self.facts) == ("run 2/4 10.0.0.1",)
        resolved = resolve_environment(loaded, lookup, {}, node=self.facts)
        assert resolved.plain == {"R": "r1", "S": "r1"}
        assert resolved.secret.keys() == {"T"}

    def test_learn_the_addresses_of_others(self) -> None:
        groups = [
            {"commands": ["head", "${{ groups[1].nodes[0].IP_ADDRESS }}"], "nodes": 2},
            {"commands": ["work ${{ groups[0].nodes[0].IP_ADDRESS }} '$${{ kept }}' ${HOME}"]},
        ]
        loaded = self.task(nodes=None, groups=groups)
        assert resolve_commands(loaded, self.facts, group=0) == ("head", "10.0.0.3")
        assert resolve_commands(loaded, self.facts, group=1) == ("work 10.0.0.1 '${{ kept }}' ${HOME}",)
        assert awaited_addresses(loaded) == {(0, 0), (1, 0)}
        assert [key for key, _ in node_references(loaded)] == ["groups.0.commands.1", "groups.1.commands.0"]

    @pytest.mark.parametrize("key", ["groups", "replicas"])
    def test_of_services_are_replicas(self, key: str) -> None:
        groups = [
            {"count": 2, "commands": ["head"]},
            {"count": 1, "commands": ["work ${{ groups[0].replicas[0].IP_ADDRESS }}"]},
        ]
        loaded = service(**{key: groups})
        assert resolve_commands(loaded, self.facts, group=1) == ("work 10.0.0.1",)

    def test_whose_address_is_not_known_yet_cannot_be_asked(self) -> None:
        loaded = self.task(
            nodes=None, groups=[{"commands": ["${{ groups[0].nodes[1].IP_ADDRESS }}"], "nodes": 2}]
        )
        with pytest.raises(ConfigurationError) as caught:
            resolve_commands(loaded, self.facts, group=0)
        assert str(caught.value) == (
            "<mapping>: groups.0.commands.0: groups[0].nodes[1].IP_ADDRESS has no address yet"
        )

    def test_have_mounts_of_their_own(self) -> None:
        loaded = self.task(
            volumes=[
                "w-${{ dstack.node_rank }}:/w:ro",
                {"name": ["a-${{ dstack.job_num }}", "b"], "path": "/v"},
                "/data/${{ dstack.node_rank }}:/data",
            ]
        )
        mounts = resolve_mounts(loaded, self.facts)
        assert [getattr(mount, "name", None) for mount in mounts] == [("w-2",), ("a-2", "b"), None]
        assert [getattr(mount, "instance_path", None) for mount in mounts] == [None, None, "/data/2"]
        assert mounts[0].read_only

    def test_are_needed_for_what_they_learn(self) -> None:
        with pytest.raises(
            ConfigurationError, match=r"env\.R: dstack\.node_rank is known only when a node starts"
        ):
            resolve_environment(self.task(env={"R": "${{ dstack.node_rank }}"}), lookup, {})

    def test_commands_of_a_service_are_as_they_are(self) -> None:
        loaded = service(commands=["echo '$${{ kept }}'"])
        assert resolve_commands(loaded, NodeFacts()) == loaded.commands == ("echo '${{ kept }}'",)

    def test_a_model_made_by_hand_says_what_it_says(self) -> None:
        made = TaskConfiguration(commands=["echo '${{ not.ours }}'", "echo ${{ dstack.node_rank }}"])
        assert resolve_commands(made, self.facts) == ("echo '${{ not.ours }}'", "echo 2")

    @given(st.text("$ {}ab.", max_size=16))
    def test_any_other_text_of_a_command_stays(self, text: str) -> None:
        loaded = self.task(commands=["x" + text.replace("${{", "$${{")])
        assert resolve_commands(loaded, self.facts) == ("x" + text,)


def repository_of(url: str, environ: dict[str, str] | None = None, **keys: Any) -> Any:
    return resolve_repository(service(repos=[{"url": url, **keys}]), lookup, environ or {})


@pytest.mark.parametrize(
    ("url", "username", "password"),
    [
        ("https://git.example.com/a.git", "", None),
        ("https://me@git.example.com/a.git", "", None),
        ("git@git.example.com:a.git", "", None),
        ("https://${{ secrets.TOKEN }}@git.example.com/a.git", "git", "hunter2"),
        ("https://${{ secrets.USER }}:${{ secrets.TOKEN }}@git.example.com/a.git", "me", "hunter2"),
        ("https://bot:x-${{ env.T }}@git.example.com/a.git", "bot", "x-deployed"),
    ],
)
def test_the_credentials_of_a_repository_are_apart_from_its_url(
    url: str, username: str, password: str | None
) -> None:
    remote = repository_of(url, {"T": "deployed"}, branch="main", hash="0123abc")

    assert (remote.branch, remote.commit, remote.username) == ("main", "0123abc", username)
    assert (remote.password and remote.password.get_secret_value()) == password
    assert remote.url == (url if password is None else "https://git.example.com/a.git")
    assert "hunter2" not in repr(remote)


def test_a_repository_on_this_machine_needs_nothing() -> None:
    assert resolve_repository(service(repos=["."]), lookup, {}) is None


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("secrets.NOBODY", "no secret NOBODY"),
        ("env.NOBODY", "is not in the environment"),
        ("secrets.BAD", "has a line break"),
    ],
)
def test_a_secret_of_a_repository_that_cannot_be_used(reference: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"repos\.0\.url: .*{message}"):
        repository_of(f"https://${{{{ {reference} }}}}@git.example.com/a.git")


def test_what_a_repository_takes_from_the_environment_is_kept_with_the_revision() -> None:
    assert deployer_variables(service(repos=["https://${{ env.T }}@git.example.com/a.git"])) == {"T"}


@given(token=st.text(st.characters(exclude_characters="\n\0", codec="utf-8"), max_size=30))
def test_a_token_may_have_any_characters(token: str) -> None:
    configuration = service(repos=["https://${{ secrets.X }}@git.example.com/a.git"])
    remote = resolve_repository(configuration, lambda _: token, {})

    assert remote is not None
    assert remote.password is not None
    assert remote.password.get_secret_value() == token
    assert remote.url == "https://git.example.com/a.git"
