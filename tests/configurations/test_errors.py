"""Bad input gives one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from textwrap import dedent

import pytest

from prefect_dstack.configurations import load_configuration
from prefect_dstack.errors import ConfigurationError

HEAD = "type: service\nport: 8000\ncommands: [run]\n"


def message(source: object, **options: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(source, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.isprintable(), text
    assert len(text) < 500
    assert caught.value.exit_code == 2
    assert caught.value.__cause__ is None
    return text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("type: service\nimage: x\nprot: 8000\n", "<text>:3: prot: unknown key, did you mean 'port'?"),
        (
            "type: service\nimage: x\n",
            "<text>:1: port: is missing; add 'port: 8000', the port the application listens on",
        ),
        (
            "type: service\nimage: x\nport: 70000\n",
            "<text>:3: port: must be a port from 1 to 65535, not 70000",
        ),
        ("type: service\nimage: x\nport: 0\n", "<text>:3: port: must be a port from 1 to 65535, not 0"),
        (
            "type: service\nimage: x\nport: http\n",
            "<text>:3: port: must be a port such as 8000 or 8001:8000, not 'http'",
        ),
        ("type: service\nimage: x\nport:\n", "<text>:3: port: has no value; give it one, or remove the key"),
        (
            "type: service\n\tport: 8000\n",
            "<text>:2: not valid YAML: tabs cannot be used for indentation, use spaces",
        ),
        (
            "type: service\ncommands:\n\t- run\n",
            "<text>:3: not valid YAML: tabs cannot be used for indentation, use spaces",
        ),
        ("- type: service\n", "<text>:1: must be a mapping that starts with 'type: service', not a list"),
        (
            "just\nwords\n",
            "<text>:1: must be a mapping that starts with 'type: service', not 'just words'",
        ),
        ("\n", "<text>: is empty; start with 'type: service'"),
        ("# only a comment\n", "<text>: is empty; start with 'type: service'"),
        ("---\n...\n", "<text>: is empty; start with 'type: service'"),
        (HEAD + "port: 8001\n", "<text>:4: the key 'port' is there twice; keep one"),
        (HEAD + "---\ntype: task\n", "<text>:4: several YAML documents; keep one, and remove the '---'"),
        (
            "type: servce\nport: 1\n",
            (
                "<text>:1: type: must be service, task, dev-environment, gateway, fleet or volume, "
                "not 'servce'; did you mean 'service'?"
            ),
        ),
        (
            "port: 1\ntype: [service]\n",
            "<text>:2: type: must be service, task, dev-environment, gateway, fleet or volume, not a list",
        ),
        ("tpye: service\nport: 1\n", "<text>:1: tpye: unknown key, did you mean 'type'?"),
        (
            "port: 8000\nimage: x\n",
            (
                "<text>:1: type: is missing; "
                "add 'type: service' (or task, dev-environment, gateway, fleet or volume)"
            ),
        ),
        (HEAD + "retain: many\n", "<text>:4: retain: must be a whole number, not 'many'"),
        (HEAD + "retain: 0\n", "<text>:4: retain: must be at least 1, not 0"),
        (HEAD + "retain: true\n", "<text>:4: retain: must be a number, not true"),
        (HEAD + "privileged: perhaps\n", "<text>:4: privileged: must be true or false, not 'perhaps'"),
        (HEAD + "max_price: [1]\n", "<text>:4: max_price: must be a number, not a list"),
        (HEAD + "max_price: .nan\n", "<text>:4: max_price: must be a number, not '.nan'"),
        (HEAD + "image: 5\n", "<text>:4: image: must be text; put quotes around 5"),
        (HEAD + "rollout: fast\n", "<text>:4: rollout: must be a mapping of 'key: value' lines, not 'fast'"),
        (HEAD + "probes: /health\n", "<text>:4: probes: must be a list of '- item' lines, not '/health'"),
        (
            HEAD + "spot_policy: ondemand\n",
            (
                "<text>:4: spot_policy: must be spot, on-demand or auto, "
                "not 'ondemand'; did you mean 'on-demand'?"
            ),
        ),
        (
            HEAD + "rollout:\n  strategy: rolling\n  max_surge: -1\n",
            "<text>:6: rollout.max_surge: must be a whole number or a whole percentage such as 25%, not -1",
        ),
        (
            HEAD + "rollout: {max_surge: 0}\n",
            (
                "<text>:4: rollout.max_surge: cannot be 0 while max_unavailable is 0, "
                "or no replica could ever be replaced"
            ),
        ),
        (
            HEAD + "rollout:\n  canary: {weigth: 10%}\n",
            "<text>:5: rollout.canary.weigth: unknown key, did you mean 'weight'?",
        ),
        (
            HEAD + "rollout:\n  strategy: canary\n  canary: {weight: 10}\n",
            "<text>:6: rollout.canary.weight: must be a percentage such as 10%, not 10",
        ),
        (
            HEAD + "rollout:\n  canary: {weight: 10%}\n",
            "<text>:5: rollout.canary: needs 'strategy: canary' beside it",
        ),
        (
            HEAD + "rollout:\n  strategy: canary\n  canary: {steps: [5%, 50%], weight: 20%}\n",
            "<text>:6: rollout.canary.weight: cannot be beside 'steps': the steps say it",
        ),
        (
            HEAD + "rollout:\n  strategy: canary\n  canary: {steps: [5%, 50%], duration: 1m}\n",
            "<text>:6: rollout.canary.duration: cannot be beside 'steps': 'pause' says it",
        ),
        (
            HEAD + "rollout:\n  strategy: canary\n  canary: {pause: 1m}\n",
            "<text>:6: rollout.canary.pause: needs 'steps' beside it; without them it is 'duration'",
        ),
        (
            HEAD + "rollout:\n  strategy: canary\n  canary: {steps: [50%, 5%]}\n",
            "<text>:6: rollout.canary.steps: must grow from step to step",
        ),
        (
            HEAD + "probes:\n  - url: health\n",
            (
                "<text>:5: probes.0.url: must be a path of printable ASCII that starts with '/' "
                "and has no spaces, not 'health'"
            ),
        ),
        (
            HEAD + "probes:\n  - type: tcp\n    url: /x\n",
            "<text>:6: probes.0.url: means nothing to a tcp probe; remove it, or use type: http",
        ),
        (
            HEAD + "probes:\n  - body: x\n",
            "<text>:5: probes.0.body: cannot be sent with method get; use method: post",
        ),
        (
            HEAD + "probes:\n  - interval: 0\n",
            "<text>:5: probes.0.interval: must be at least 1, not 0",
        ),
        (
            HEAD + "probes:\n  - interval: soon\n",
            "<text>:5: probes.0.interval: must be a duration such as 30s, 5m or 1h30m, not 'soon'",
        ),
        (
            HEAD + "replicas: 1..4\n",
            "<text>:4: replicas: is a range, so add 'scaling' to say when to use how many of 1..4",
        ),
        (
            HEAD + "replicas: 2\nscaling: {metric: rps, target: 5}\n",
            "<text>:5: scaling: needs a range such as 'replicas: 1..4'",
        ),
        (HEAD + "replicas: 2..\n", "<text>:4: replicas: must have a greatest number, such as 2..4, not 2.."),
        (HEAD + "replicas: 4..2\n", "<text>:4: replicas: must not end before it begins: 4..2"),
        (
            HEAD + "replicas: many\n",
            "<text>:4: replicas: must be a whole number, not 'many'",
        ),
        (
            "type: service\nport: 80\nimage: a\nreplicas:\n  - count: 1\n    comands: [x]\n",
            "<text>:6: replicas.0.comands: unknown key, did you mean 'commands'?",
        ),
        (
            "type: service\nport: 80\nreplicas:\n  - count: 1\n",
            "<text>:4: replicas.0.commands: is missing; say what the group runs",
        ),
        (
            "type: service\nport: 80\n",
            "<text>:1: commands: is missing; say what to run, or give an 'image' that knows",
        ),
        (
            "type: service\nport: 80\ncommands: python app.py\n",
            "<text>:3: commands: must be a list; put '- ' before the command",
        ),
        (
            HEAD + "image: nginx\npython: 3.12\n",
            "<text>:5: python: cannot stand beside 'image'; keep one of them",
        ),
        (HEAD + "python: 2.7\n", "<text>:4: python: must be a version of Python such as 3.12, not 2.7"),
        (
            HEAD + "resources: {gpu: 'A100:2:3'}\n",
            "<text>:4: resources.gpu: gives its count twice: 'A100:2:3'",
        ),
        (
            HEAD + "resources: {memory: lots}\n",
            "<text>:4: resources.memory: must be a size such as 512MB or 16GB, not 'lots'",
        ),
        (
            HEAD + "resources: {gpu: {vendor: nvdia}}\n",
            (
                "<text>:4: resources.gpu.vendor: must be nvidia, amd, google, intel or tenstorrent, "
                "not 'nvdia'; did you mean nvidia?"
            ),
        ),
        (
            HEAD + "image: ${{ secrets.IMAGE }}\n",
            "<text>:4: image: a secret cannot be kept here: put it under 'env' and use $NAME in the commands",
        ),
        (
            "type: service\nport: 80\ncommands:\n  - login ${{ secrets.TOKEN }}\n",
            (
                "<text>:4: commands.0: a secret cannot be kept here: "
                "put it under 'env' and use $NAME in the commands"
            ),
        ),
        (
            "type: service\nport: 80\nenv: {T: '${{ secrets.T }}'}\ncommands: ['${{ env.T }}']\n",
            "<text>:4: commands.0: env.T holds a secret; use $T in the commands",
        ),
        (
            "type: service\nport: 80\nenv: [T]\ncommands: ['${{ env.T }}']\n",
            (
                "<text>:4: commands.0: env.T comes from the deployer's environment at launch; "
                "use $T in the commands"
            ),
        ),
        (
            HEAD + "image: x${{ env.TGA }}\nenv: {TAG: a}\n",
            "<text>:4: image: env.TGA is set neither under 'env' nor in the environment; did you mean TAG?",
        ),
        (
            HEAD + "image: ${{ env.A }}\nenv: {A: '${{ env.B }}', B: '${{ env.A }}'}\n",
            (
                "<text>:4: image: env.A refers to itself; line 5: env.A: env.A refers to itself; "
                "line 5: env.B: env.B refers to itself"
            ),
        ),
        (
            HEAD + "user: ${{ run.id }}\n",
            "<text>:4: user: 'run.id' is not known; there are run.name, run.args and run.project_name",
        ),
        (
            HEAD + "user: ${{ run.name }}\n",
            "<text>:4: user: there is no run.name yet; add 'name: …' to the configuration",
        ),
        (
            HEAD + "image: w-${{ dstack.node_rank }}\n",
            (
                "<text>:4: image: dstack.node_rank is known only when a node starts, and cannot stand here; "
                "it can in the commands of a task, in 'env' and in 'volumes'"
            ),
        ),
        (
            HEAD + "env: {R: '${{ dstack.rank }}'}\n",
            (
                "<text>:4: env.R: 'dstack.rank' is not known; there are dstack.node_rank, dstack.job_num, "
                "dstack.replica_num, dstack.nodes_num and dstack.master_node_ip"
            ),
        ),
        (
            "type: task\nnodes: 2\ncommands:\n  - run ${{ groups[0].nodes[2].IP_ADDRESS }}\n",
            "<text>:4: commands.0: groups[0].nodes[2].IP_ADDRESS: groups[0] has 2, counted from 0",
        ),
        (
            "type: task\ncommands:\n  - run ${{ groups[0].node[0].IP }}\n",
            (
                "<text>:3: commands.0: 'groups[0].node[0].IP' is not known; write "
                "groups[0].nodes[0].IP_ADDRESS, or of a service's group groups[0].replicas[0].IP_ADDRESS"
            ),
        ),
        (
            HEAD + "image: app:${{ prefect.variables.tag }}\n",
            (
                "<text>:4: image: prefect.variables.tag cannot be looked up here, without a Prefect API; "
                "write the value itself"
            ),
        ),
        (
            HEAD + "user: ${{ prefect.blocks.x }}\n",
            (
                "<text>:4: user: 'prefect.blocks.x' is not known; write prefect.variables.NAME, "
                "or secrets.NAME"
            ),
        ),
        (
            HEAD + "registry_auth: {username: $oauthtoken, password: $NGC_API_KEY}\n",
            (
                "<text>:4: registry_auth.password: is taken as it stands, and no shell fills it in; did you "
                "mean ${{ env.NGC_API_KEY }}? A password that begins so goes into a secret: "
                "${{ secrets.NAME }}"
            ),
        ),
        (
            "type: preset\nbase: acme/chat\n",
            (
                "<text>:1: type: presets are made by dstack itself; write the service, with its image "
                "and commands"
            ),
        ),
        (
            HEAD + "volumes: ['/a:/b/${{ dstack.node_rank }}']\n",
            "<text>:4: volumes.0: a reference cannot stand in the path in the container",
        ),
        (
            HEAD + "volumes: ['/a:/b:rx']\n",
            (
                "<text>:4: volumes.0: must be 'volume:/path' or '/on/instance:/in/container', perhaps with "
                "':ro' for read-only, not '/a:/b:rx'"
            ),
        ),
        (
            HEAD + "user: ${{ secret.X }}\n",
            "<text>:4: user: 'secret.X' is not known; did you mean 'secrets'?",
        ),
        (
            HEAD + "user: ${{ oops\n",
            "<text>:4: user: '${{' without its '}}'; write '$${{' for the characters themselves",
        ),
        (
            HEAD + "path_prefix: /a\\nb\nenv:\n  - 1bad=x\n",
            (
                "<text>:4: path_prefix: must be a path such as /api of letters, digits and ._~%:@+,=-, "
                "not '/a\\\\nb'; line 5: env: the name of an environment variable has letters, digits, "
                "underscores and dots, no digit first, not '1bad'"
            ),
        ),
        (
            HEAD + "rate_limits:\n  - {prefix: /a, rps: 1}\n  - {prefix: /a, rps: 2}\n",
            "<text>:4: rate_limits: has the prefix '/a' 2 times; keep one of them",
        ),
        (
            HEAD + "rate_limits:\n  - {rps: 1, key: {type: header}}\n",
            "<text>:5: rate_limits.0.key.header: is missing; add 'header: X-Api-Key', the header to count by",
        ),
        (
            HEAD + "client_max_body_size: 64\n",
            "<text>:4: client_max_body_size: must be a size with its unit such as 64MB, not 64",
        ),
        (
            HEAD + "tags: {prefect-dstack/service: mine}\n",
            (
                "<text>:4: tags.prefect-dstack/service: the tag 'prefect-dstack/service' is reserved; "
                "choose another name"
            ),
        ),
        (
            HEAD + "schedule: {cron: 0 8 * *}\n",
            (
                "<text>:4: schedule.cron: must be a cron expression of five fields such as "
                "'0 8 * * mon-fri' (minute 0-59, hour 0-23, day 1-31, month 1-12, day of the week 0-6 from "
                "Monday), not '0 8 * *'"
            ),
        ),
        (
            "type: gateway\nbackend: ssh\n",
            "<text>:1: host: is missing; a gateway with 'backend: ssh' needs the host it runs on",
        ),
        (
            "type: gateway\ncertificate: {type: file, cert_file: a}\n",
            "<text>:2: certificate.key_file: is missing; a certificate of type file needs it",
        ),
        (
            "type: gateway\ncertificate: {type: self-signed, arn: a}\n",
            "<text>:2: certificate.arn: means nothing to a certificate of type self-signed; remove it",
        ),
        (
            "type: gateway\nhttps_port: 8443\n",
            "<text>:2: https_port: needs a certificate; add 'domain: example.com', or a 'certificate'",
        ),
        (
            "type: gateway\nbackend: ssh\nhost: gw\nport: 443\ndomain: example.com\n",
            "<text>:4: port: cannot be 443, the port of HTTPS; give one of them another",
        ),
        (
            "type: gateway\ncertificate: {}\n",
            "<text>:2: certificate.type: is missing; add 'type: …'",
        ),
        (
            "type: fleet\nssh_config:\n  hosts:\n    - hostname: a\n      ssh_key: not-a-secret\n",
            (
                "<text>:5: ssh_config.hosts.0.ssh_key: must be a secret such as ${{ secrets.SSH_KEY }}; "
                "a key in a file is named by 'identity_file'"
            ),
        ),
        (
            "type: fleet\nssh_config: {network: 8.8.8.0/24, hosts: [a]}\n",
            "<text>:2: ssh_config.network: must be a private network, not '8.8.8.0/24'",
        ),
        (HEAD + "when: !!python/object:os.system {}\n", "is not supported; remove it"),
        (HEAD + 'user: "\\0"\n', "<text>:4: user: has a character that is not text (NUL or half a pair)"),
        (HEAD + 'user: "\\uD800"\n', "<text>:4: user: has a character that is not text (NUL or half a pair)"),
        (HEAD + "user: *nobody\n", "<text>:4: not valid YAML: an alias (*name) without its anchor (&name)"),
        (HEAD + "user: 'open\n", "not valid YAML: a quotation mark is not closed"),
        (HEAD + "user: a: b\n", "<text>:4: not valid YAML: a key is not expected here"),
        (HEAD + " user: a\n", "<text>:4: not valid YAML: "),
        (HEAD + "? [a, b]\n: c\n", "<text>:4: a key must be one word, not a list, a mapping or an alias"),
        (
            HEAD + "user: \x07\n",
            "<text>:4: not valid YAML: a control character that YAML does not allow (0x07)",
        ),
    ],
)
def test_says_what_is_wrong_where_and_what_to_do(text: str, expected: str) -> None:
    got = message(text, environ={})
    assert expected in got
    if expected.startswith("<text>") and not expected.endswith((": ", "here", "closed")):
        assert got == expected


@pytest.mark.parametrize(
    "name",
    [
        "../etc",
        "a\nb",
        'a"b',
        "a'b",
        "x" * 300,
        "Hello",
        "3d",
        "-a",
        "",
        "a b",
        "a.b",
        "ä",
        "a\u2028b",
        "a/../b",
    ],
)
def test_a_bad_name_is_shown_safely_and_shortened(name: str, tmp_path: Path) -> None:
    source = {"type": "service", "port": 80, "image": "x", "name": name}
    expected = (
        "must be a lower-case letter followed by at most 39 lower-case letters, digits or hyphens, not "
    )
    got = message(source)
    assert got.startswith(f"<mapping>: name: {expected}")
    assert ascii(name)[:20] in got
    assert expected in message({**source, "name": "fine"}, name=name)


def test_a_problem_of_a_block_value_is_at_its_key() -> None:
    text = HEAD + dedent(
        """\
        path_prefix: |
          /a
          http-request deny
        """
    )
    assert message(text).startswith("<text>:4: path_prefix: ")


def test_problems_come_in_the_order_of_the_file_each_with_its_line() -> None:
    text = "type: service\nport: 80\nretain: no\nnmae: x\nimage: A B\n"
    assert message(text).startswith(
        "<text>:3: retain: must be a whole number, not 'no'; "
        "line 4: nmae: unknown key, did you mean 'name'?; line 5: image: must be "
    )


def test_many_problems_are_counted() -> None:
    text = HEAD + "".join(f"odd{number}: 1\n" for number in range(99))
    assert message(text).startswith("<text>:4: odd0: unknown key")
    assert "; line 8: odd4: unknown key" in message(text)
    assert re.search(r"; and \d\d more$", message(text))


def test_values_that_may_be_secret_are_not_shown() -> None:
    text = HEAD + "registry_auth:\n  username: me\n  password: [hunter2]\nenv:\n  KEY: {hunter2: 1}\n"
    assert "hunter2" not in message(text)
    assert "hunter2" not in message("type: fleet\nssh_config: {ssh_key: hunter2, hosts: [a]}\n")
    assert "hunter2" not in message(HEAD + "env: ['A=hunter2', 'A=hunter2']\n")


def test_an_environment_that_is_not_one_is_refused() -> None:
    assert message(HEAD + "env: [{A: 1}]\n") == (
        "<text>:4: env: must be a list of NAME=value, or a mapping of NAME: value"
    )
    assert message(HEAD + "env: 5\n") == (
        "<text>:4: env: must be a mapping of NAME: value, or a list of NAME=value"
    )
    assert "<text>:4: env.A-B: the name of an environment variable" in message(HEAD + "env: {A-B: 1}\n")


@pytest.mark.parametrize("depth", [40, 5000, 200_000])
def test_deep_nesting_is_bounded(depth: int) -> None:
    assert "deep" in message(HEAD + "x: " + "[" * depth + "]" * depth + "\n")
    assert "deep" in message(HEAD + "x: " + "{a: " * depth + "1" + "}" * depth + "\n")


def test_alias_bombs_are_bounded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "more than 20000 values, counting aliases" in message("\n".join([*lines, "type: service\n"]))
    long = f"a: &a {'x' * 500_000}\nb: [{', '.join(['*a'] * 500)}]\ntype: service\n"
    assert "more than 20000 values, counting aliases" in message(long)


@pytest.mark.parametrize("end", ["", "x" * 100])
def test_interpolation_bombs_are_bounded(end: str) -> None:
    env = {f"A{n}": f"${{{{ env.A{n + 1} }}}}" * 10 for n in range(12)} | {"A12": end}
    source = {"type": "service", "port": 80, "commands": ["${{ env.A0 }}"], "env": env}
    assert "longer than 1 MiB" in message(source)


def test_large_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "large.dstack.yml"
    file.write_text(HEAD + "#" * 1024 * 1024)
    assert message(file) == f"{file}: is larger than 1 MiB; a configuration is a few lines"
    assert "is larger than 1 MiB" in message(HEAD + "#" * 1024 * 1024)


def test_a_mapping_has_the_bounds_of_a_file() -> None:
    endless: dict[str, object] = {"type": "service"}
    endless["x"] = endless
    assert message(endless) == "<mapping>: is too large or too deep for a configuration"
    assert "too large" in message({"type": "service", "x": list(range(30_000))})
    assert message({"type": "service", "port": 80, "image": object()}).startswith(
        "<mapping>: image: must be text"
    )


def test_what_is_no_file(tmp_path: Path) -> None:
    assert message(tmp_path / "none.yml") == f"{tmp_path}/none.yml: no such file"
    assert message("serve.yml") == "serve.yml: no such file"
    assert message(tmp_path) == f"{tmp_path}: is a directory; name a file in it"
    (tmp_path / ".dstack.yml").write_text(HEAD)
    assert message(tmp_path) == (
        f"{tmp_path}: is a directory; name a file in it, for example {tmp_path}/.dstack.yml"
    )
    assert (
        message(tmp_path / ".dstack.yml" / "x")
        == f"{tmp_path}/.dstack.yml/x: cannot be read: Not a directory"
    )
    assert message("") == "no configuration: give a file, YAML text, a mapping or a model"
    assert message("x" * 5000).endswith("is neither the path of a file nor YAML text")
    assert message("a\0b").endswith("is neither the path of a file nor YAML text")
    assert "cannot be read" in message("x" * 300)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    file = tmp_path / "secret.yml"
    file.write_text(HEAD)
    file.chmod(stat.S_IWUSR)
    assert message(file) == f"{file}: cannot be read: permission denied"


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "latin.yml"
    file.write_bytes(b"type: service\nname: \xe9\n")
    assert message(file) == f"{file}:2: is not UTF-8 text; save it as UTF-8"
    file.write_text("type: service\n", encoding="utf-16")
    assert message(file) == f"{file}:1: is not UTF-8 text; save it as UTF-8"


def test_a_file_name_cannot_break_the_line(tmp_path: Path) -> None:
    file = tmp_path / "a\nb.yml"
    assert "\\n" in message(file)
    file.write_text("type: service\n")
    assert "\\n" in message(file)
