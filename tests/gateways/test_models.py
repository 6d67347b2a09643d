"""The models of all services at one address of the gateway."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from prefect_dstack.errors import ConflictError
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.local import LocalPlace
from prefect_dstack.gateways.routing import models_url
from prefect_dstack.gateways.state import GatewayState, Route
from prefect_dstack.gateways.template import render
from prefect_dstack.gateways.transitions import configured
from prefect_dstack.hosts.ports import free_port, port_is_free
from tests.gateways.application import Answer, Application, raw, request
from tests.gateways.test_https import certificate
from tests.gateways.waiting import held, held_by_current
from tests.gateways.world import World, replica, token
from tests.polling import wait_until

CREATED = 1_700_000_000
RIGHT = {"Authorization": "Bearer right"}
WRONG = {"Authorization": "Bearer wrong"}
LIMIT = 16 * 1024 * 1024


def with_free_port(state: GatewayState) -> GatewayState:
    return state.with_models_port(lambda port: port_is_free(port, "127.0.0.1"))


def model(name: str, **fields: object) -> dict[str, object]:
    return {"name": name, "created": CREATED, **fields}


class Models(World):
    """A gateway with models, asked at the address of all of them."""

    def serve(self, **fields: object) -> tuple[str, Application]:
        """Publish a service with a model that is called as the service is."""
        name = f"service-{self.count + 1}"
        served = self.service(**{"model": model(f"org/{name}"), **fields})
        self.gateway.change(with_free_port)
        return served

    @property
    def models_port(self) -> int:
        port = self.gateway.state().models_port
        assert port is not None
        return port

    def ask(
        self,
        path: str = "/v1/chat/completions",
        body: Any = None,
        headers: dict[str, str] | None = None,
        **keys: Any,
    ) -> Answer:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return request(
            self.models_port,
            path,
            method=keys.pop("method", "GET" if body is None else "POST"),
            headers={"Content-Type": "application/json", **(headers or {})},
            body=data,
            **keys,
        )

    def listed(self, headers: dict[str, str] | None = None) -> list[str]:
        return [it["id"] for it in self.ask("/v1/models", headers=headers).json()["data"]]


@pytest.fixture(scope="module")
def models(haproxy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    gateway = Gateway(LocalPlace("local", tmp_path_factory.mktemp("models") / "gateway"))
    gateway.ensure_running(GatewayState(name="local", base_port=free_port()))
    models = Models(gateway)
    yield models
    gateway.destroy()
    for application in models.applications:
        application.stop()


def late(name: str, size: int = 300_000) -> bytes:
    """A body in which the model comes after the messages, as OpenAI's client writes it."""
    text = 'He said: "Hello", C:\\dir\\\n{"model": "not this one"} ü '
    messages = [{"role": "user", "content": text * (size // len(text)), "model": "nor this one"}]
    return json.dumps({"messages": messages, "model": name}).encode()


def chunked(body: bytes, size: int = 9000) -> bytes:
    parts = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def route(service: str, **fields: object) -> Route:
    return Route.model_validate({"service": service, "port": 80, **fields})


class TestState:
    STATE = GatewayState(name="gate", base_port=80, bind_address="*")

    def test_a_state_of_earlier_versions_has_no_models(self) -> None:
        written = self.STATE.with_route(route("a")).model_dump(mode="json")
        del written["models_port"], written["routes"]["a"]["model"]

        assert GatewayState.model_validate(written).models == []

    def test_a_gateway_without_a_model_is_configured_as_if_there_were_none(self) -> None:
        files = render(self.STATE.with_route(route("a")))

        assert not [name for name in files if "models" in name]
        assert b"model" not in b"".join(files.values())

    def test_with_a_domain_they_have_a_host_name(self) -> None:
        state = GatewayState(name="gate", base_port=80, bind_address="*", domain="example.com")
        assert models_url(state, "192.0.2.1") is None
        state = with_free_port(state.with_route(route("a", hosts=["a.example.com"], model=model("m"))))

        assert state.models_port is None
        assert models_url(state, "192.0.2.1") == "http://gateway.example.com/v1"
        secure = state.model_copy(update={"https_port": 443})
        assert models_url(secure, "192.0.2.1") == "https://gateway.example.com/v1"

    def test_without_a_domain_they_have_a_port_as_long_as_there_is_one(self) -> None:
        state = self.STATE.with_route(route("a", model=model("m")))
        state = state.with_models_port(lambda port: port != 1080)

        assert models_url(state, "192.0.2.1") == "http://192.0.2.1:1081/v1"
        assert state.http_ports == [80, 1081]
        with pytest.raises(ConflictError, match="1081"):
            state.with_route(route("b", port=1081))
        assert state.with_models_port(lambda _: True).models_port == 1081
        assert state.without_route("a").with_models_port(lambda _: True).models_port is None

    def test_the_gateways_own_ports_come_first(self) -> None:
        state = self.STATE.with_route(route("a", model=model("m"))).with_models_port(lambda _: True)
        wanted = self.STATE.model_copy(update={"https_port": 1080})

        moved = configured(state, wanted).with_models_port(lambda port: port != 1081)
        assert (moved.https_ports, moved.http_ports) == ([1080, 1082], [80])
        last = state.model_copy(update={"base_port": 65000, "models_port": None})
        assert last.with_models_port(lambda port: port == 2000).models_port == 2000

    def test_two_services_have_no_model_in_common(self) -> None:
        state = self.STATE.with_route(route("a", port=80, model=model("m")))

        with pytest.raises(ConflictError, match="model 'm' of the gateway belongs to service 'a'"):
            state.with_route(route("b", port=81, model=model("m")))
        assert state.with_route(route("a", port=80, model=model("m", prefix="/api"))) != state

    def test_a_service_that_has_their_host_name_already_keeps_it(self) -> None:
        state = GatewayState(name="gate", base_port=80, bind_address="*", domain="example.com")
        taken = route("gateway", hosts=["gateway.example.com"])
        served = route("a", hosts=["a.example.com"], model=model("m"))

        assert state.with_route(taken).with_route(served).models_host is None
        with pytest.raises(ConflictError, match="choose another domain or name"):
            state.with_route(served).with_route(taken)


@pytest.mark.integration
class TestListing:
    def test_strangers_are_shown_what_is_open(self, models: Models) -> None:
        open_, _ = models.serve()
        closed, _ = models.serve(auth=True, tokens={"t": token("right")})
        expired, _ = models.serve(auth=True, tokens={"t": token("right", datetime(2020, 1, 1, tzinfo=UTC))})

        assert f"org/{open_}" in models.listed()
        for headers in (None, WRONG):
            assert f"org/{closed}" not in models.listed(headers)
            assert models.ask(f"/v1/models/org/{closed}", headers=headers).status == 401
            # There is no telling a model that is there from one that is not.
            assert models.ask("/v1/models/org/other", headers=headers).status == 401
            assert models.ask(body={"model": f"org/{closed}"}, headers=headers).status == 401
            assert models.ask(body={"model": "org/other"}, headers=headers).status == 401
        assert {f"org/{open_}", f"org/{closed}"} <= set(models.listed(RIGHT))
        assert f"org/{expired}" not in models.listed(RIGHT)
        assert models.ask(f"/v1/models/org%2F{closed}", headers=RIGHT).json() == {
            "id": f"org/{closed}",
            "object": "model",
            "created": CREATED,
            "owned_by": closed,
        }

    def test_a_token_of_the_gateway_shows_all_until_it_is_revoked(self, models: Models) -> None:
        closed, _ = models.serve(auth=True)
        gateway = models.gateway
        gateway.change(lambda state: state.model_copy(update={"tokens": {"t": token("master")}}))
        before = gateway._workers().current
        headers = {"Authorization": "Bearer master"}
        assert f"org/{closed}" in models.listed(headers)

        gateway.change(lambda state: state.without_token(None, "t"))
        assert f"org/{closed}" not in models.listed(headers)
        assert gateway._workers().current == before

    def test_it_is_only_read(self, models: Models) -> None:
        models.serve()
        assert models.ask("/v1/models", method="DELETE").status == 405


@pytest.mark.integration
class TestAsking:
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions", "/v1/embeddings?a=%2F"])
    def test_the_model_in_the_body_tells_the_service(self, models: Models, path: str) -> None:
        (first, _), (second, application) = models.serve(), models.serve()
        body = {"messages": [{"model": f"org/{first}"}], "model": f"org/{second}"}

        assert models.ask(path, body).body == second.encode()
        seen = application.seen[-1]
        assert seen.target == f"/v1/{path.removeprefix('/v1/').removeprefix('/')}"
        assert json.loads(seen.body) == body
        assert seen.header("x-forwarded-for") == "127.0.0.1"

    def test_an_unknown_model_is_not_found(self, models: Models) -> None:
        models.serve(auth=True, tokens={"t": token("right")})

        answer = models.ask(body={"model": "no such"}, headers=RIGHT)
        assert answer.status == 404
        assert answer.json()["error"]["code"] == "model_not_found"
        assert (
            models.ask(body={"model": 'no"\\\n\x00'}, headers=RIGHT).json()["error"]["code"]
            == "model_not_found"
        )

    @pytest.mark.parametrize("body", [b"no json", b"[]", b"{}", b'{"model": 3}', b"x" * 100_000])
    def test_who_names_none_is_told_how(self, models: Models, body: bytes) -> None:
        models.serve()
        answer = models.ask(body=body)

        assert answer.status == 400
        assert "X-Dstack-Model" in answer.json()["error"]["message"]

    def test_a_header_names_it_for_any_request(self, models: Models) -> None:
        name, application = models.serve()
        headers = {"X-Dstack-Model": f"org/{name}", "Content-Type": "multipart/form-data"}

        assert models.ask("/v1/audio/transcriptions", b"no json" * 10_000, headers).body == name.encode()
        assert application.seen[-1].header("x-dstack-model") is None
        assert models.ask("/v1/responses/r1", headers=headers).body == name.encode()
        assert models.ask(headers={"X-Dstack-Model": "other", **RIGHT}, body=b"x").status == 404

    @pytest.mark.parametrize("size", [14_000, 16_000, 17_000, 300_000, 3_000_000])
    @pytest.mark.parametrize("framing", ["announced", "chunked"])
    def test_the_model_may_come_after_long_messages(self, models: Models, size: int, framing: str) -> None:
        name, application = models.serve(auth=True, tokens={"t": token("right")}, path_prefix="/p")
        body = late(f"org/{name}", size)
        headers = {**RIGHT, **({"Transfer-Encoding": "chunked"} if framing == "chunked" else {})}

        answer = models.ask(body=chunked(body) if framing == "chunked" else body, headers=headers)
        assert answer.body == name.encode()
        seen = application.seen[-1]
        assert seen.body == body
        assert seen.target == "/p/v1/chat/completions"
        assert (seen.header("authorization"), seen.header("expect")) == (None, None)
        assert (seen.header("x-dstack-model"), seen.header("x-forwarded-for")) == (None, "127.0.0.1")
        assert models.ask(body=body).status == 401

    @pytest.mark.parametrize("size", [100, 300_000])
    def test_an_answer_that_ends_with_its_connection_is_passed_on(self, models: Models, size: int) -> None:
        name, _ = models.serve()

        url = f"http://127.0.0.1:{models.models_port}/v1/unmeasured"
        assert httpx.post(url, content=late(f"org/{name}", size)).text == name

    def test_a_body_that_is_too_large_to_be_kept_is_refused_unless_a_header_names_the_model(
        self, models: Models
    ) -> None:
        name, application = models.serve()
        body = late(f"org/{name}", LIMIT + 100_000)
        url = f"http://127.0.0.1:{models.models_port}/v1/x"

        refused = httpx.post(url, content=body)
        assert refused.status_code == 413
        assert "X-Dstack-Model" in refused.json()["error"]["message"]
        assert httpx.post(url, content=body, headers={"X-Dstack-Model": f"org/{name}"}).text == name
        assert application.seen[-1].body == body

    def test_limits_count_by_the_services_own_paths(self, models: Models) -> None:
        name, application = models.serve(
            path_prefix="/p",
            strip_prefix=True,
            model=model("limited", prefix="/api"),
            client_max_body_size=500_000,
            rate_limits=[{"prefix": "/p/api/once", "rps": 1 / 60}],
        )
        assert models.ask("/v1/once", {"model": "limited"}).body == name.encode()
        assert application.seen[-1].target == "/api/once"
        assert models.ask("/v1/once", {"model": "limited"}).status == 429
        assert models.ask("/v1/once", late("limited")).status == 429
        assert models.ask("/v1/other", late("limited")).status == 200
        assert models.ask("/v1/other", late("limited", 600_000)).status == 413

    @pytest.mark.parametrize("body", ["short", "long"])
    def test_a_service_without_replicas_says_so(self, models: Models, body: str) -> None:
        name, _ = models.serve(replicas={})
        for _ in range(5):
            answer = models.ask(body=late(f"org/{name}", 100 if body == "short" else 300_000))
            assert answer.status == 503
            assert answer.headers["retry-after"] == "5"

    @pytest.mark.parametrize("size", [100, 300_000])
    def test_requests_wait_for_the_first_replica_over_a_reload(self, models: Models, size: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        name, application = models.serve(replicas={}, hold_limit=3, path_prefix="/p", strip_prefix=True)
        gateway, member = models.gateway, replica(application)
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(models.ask, body=late(f"org/{name}", size))
            wait_until(lambda: held(gateway, name) == 1)
            gateway.change(lambda state: state.with_route(route(f"{name}-other", port=free_port())))
            wait_until(lambda: held_by_current(gateway, name) == 1)
            gateway.change(lambda state: state.with_replica(name, member))
            assert answer.result(20).body == name.encode()
        assert application.seen[-1].target == "/v1/chat/completions"

    @pytest.mark.parametrize("size", [100, 300_000])
    def test_a_stream_comes_as_it_is_said(self, models: Models, size: int) -> None:
        name, application = models.serve()
        url = f"http://127.0.0.1:{models.models_port}/v1/events?count=2&seconds=1"
        with httpx.stream("POST", url, content=late(f"org/{name}", size)) as answer:
            pieces = answer.iter_raw()
            assert next(pieces) == b"data: 0\n\n"
            assert not application.counts["done"]
            assert list(pieces) == [b"data: 1\n\n"]

    def test_an_answer_that_breaks_off_does_not_look_whole(self, models: Models) -> None:
        name, application = models.serve()
        url = f"http://127.0.0.1:{models.models_port}/v1/events?count=100&seconds=1"
        with httpx.stream("POST", url, content=late(f"org/{name}")) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            application.stop()
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)

    def test_a_service_that_answers_before_it_has_read_all_is_heard(self, models: Models) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            member = {
                "name": "a",
                "address": "127.0.0.1",
                "port": listener.getsockname()[1],
                "checked": False,
            }
            name, _ = models.serve(replicas={"a": member})
            address = ("127.0.0.1", models.models_port)
            with socket.create_connection(address, 20) as client:
                body = late(f"org/{name}", 3_000_000)
                client.sendall(
                    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(
                        b"HTTP/1.1 422 No\r\nContent-Length: 5\r\nConnection: close\r\n\r\nearly"
                    )
                    assert client.recv(1000).startswith(b"HTTP/1.1 422 ")

    def test_pages_may_call_if_all_services_let_them(
        self, gateway: Gateway, port: int, application: Callable[[str], Application]
    ) -> None:
        cors = {"allow_origins": ["https://a.test"]}
        ask = (
            b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: https://a.test\r\n"
            b"Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n"
        )

        def publish(service: str, **fields: object) -> int:
            it = {"r": replica(application(service), name="r")}
            its = route(service, port=free_port(), replicas=it, model=model(service), auth=True, **fields)
            state = gateway.change(lambda state: with_free_port(state.with_route(its)))
            assert state.models_port is not None
            return state.models_port

        answer = raw(publish("one", cors=cors), ask)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "https://a.test")
        assert "access-control-allow-origin" not in raw(publish("two"), ask).headers


@pytest.mark.integration
class TestHttps:
    def test_a_gateway_with_https_has_its_models_there(
        self, gateway: Gateway, application: Callable[[str], Application]
    ) -> None:
        https_port, its = free_port(), {"r": replica(application("m"), name="r")}
        gateway.change(lambda state: state.model_copy(update={"https_port": https_port}))
        state = gateway.change(
            lambda state: with_free_port(
                state.with_route(route("m", port=state.base_port, replicas=its, model=model("m")))
            )
        )
        gateway.install_certificate("a.test", certificate("a.test"))
        url = models_url(state, "a.test")

        assert url == f"https://a.test:{state.models_port}/v1"
        with httpx.Client(verify=False, http2=True) as client:
            asked = client.post(
                f"https://127.0.0.1:{state.models_port}/v1/echo",
                content=late("m"),
                headers={"Host": "a.test"},
            )
        headers = dict(asked.json()["headers"])
        assert headers["x-forwarded-proto"] == "https"

    def test_by_name_they_are_reached_by_https_alone(
        self, gateway: Gateway, application: Callable[[str], Application]
    ) -> None:
        its = {"r": replica(application("m"), name="r")}
        port, https_port = gateway.state().base_port, free_port()
        served = route("m", port=port, hosts=["m.a.test"], replicas=its, model=model("m"))
        changed = {"https_port": https_port, "domain": "a.test"}
        gateway.change(lambda state: with_free_port(state.model_copy(update=changed).with_route(served)))

        answer = request(port, "/v1/models", host="gateway.a.test")
        assert (answer.status, answer.headers["location"]) == (
            308,
            f"https://gateway.a.test:{https_port}/v1/models",
        )
        gateway.change(lambda state: state.model_copy(update={"https_port": None}))
        assert request(port, "/v1/models", host="gateway.a.test").json()["data"][0]["id"] == "m"
        assert request(port, host="other.a.test").status == 404
