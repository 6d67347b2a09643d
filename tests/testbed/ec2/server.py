"""The process that is AWS: `python -m tests.testbed.ec2.server [--hosts]`; ends with its standard input.

Says on standard output where it listens. Below `/_testbed/` it takes orders from tests.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import sys
import tempfile
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tests.testbed.ec2 import catalogue

ACCOUNT = "123456789012"
KEY_ID = "AKIATESTBEDTESTBED00"

_SCOPE = re.compile(r"Credential=([^/]+)/\d+/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Application:
    """AWS in front of moto: who asks, what goes wrong, and what moto does not know."""

    def __init__(self, moto: Callable[..., Iterable[bytes]], machines: Any) -> None:
        from tests.testbed.ec2.faults import Faults

        self._moto = moto
        self._machines = machines
        self._faults = Faults()
        self._requests: Counter[str] = Counter()
        self._settings: dict[str, Any] = dict(_USUAL)
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if environ["PATH_INFO"].startswith("/_testbed/"):
            return self._order(environ, start)
        if environ["PATH_INFO"].startswith("/moto-api/"):
            return self._moto(environ, start)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        request = Request(environ, body)
        with self._lock:
            self._requests[request.action] += 1
        if request.key_id != KEY_ID:
            return request.refuse(start, *_STRANGER.get(request.service, _STRANGER["ec2"]))
        fault = self._faults.strike(request.action, request.properties())
        if fault is not None and fault.kind == "refuse":
            return request.refuse(start, fault.code, fault.message, fault.status)
        if request.action == "GetProducts":
            return self._prices(request, start)
        if request.action == "DescribeSpotInstanceRequests" and request.form.get("DryRun") != "true":
            return _xml(start, self._machines.spot_requests(request.region, request.values("status-code")))
        if request.action == "GetParameter" and request.json.get("Name", "").startswith("/aws/service/"):
            return self._parameter(request, start)
        return self._ask_moto(environ, start, request, body, "" if fault is None else fault.kind)

    def _ask_moto(
        self, environ: dict[str, Any], start: StartResponse, request: Request, body: bytes, fault: str
    ) -> Iterable[bytes]:
        status, headers = "", list[tuple[str, str]]()

        def prepare(said: str, told: list[tuple[str, str]], *_: Any) -> None:
            nonlocal status, headers
            status, headers = said, told

        environ["wsgi.input"] = io.BytesIO(body)
        self._machines.never_boot.now = fault == "never-boot"
        answer = b"".join(self._moto(environ, prepare))
        if fault == "lose-answer":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        if request.action == "DescribeSpotPriceHistory":
            answer = _spot_prices(answer)
        headers = [header for header in headers if header[0].lower() != "content-length"]
        start(status, [*headers, ("Content-Length", str(len(answer)))])
        return [answer]

    def _prices(self, request: Request, start: StartResponse) -> Iterable[bytes]:
        if not self._settings["prices"]:
            return request.refuse(
                start, "AccessDeniedException", "not authorized to perform: pricing:GetProducts"
            )
        region = next((f["Value"] for f in request.json.get("Filters", ()) if f["Field"] == "regionCode"), "")
        listed = [json.dumps(product) for product in catalogue.products(region)]
        return _json(start, {"FormatVersion": "aws_v1", "PriceList": listed})

    def _parameter(self, request: Request, start: StartResponse) -> Iterable[bytes]:
        name = request.json["Name"]
        if name not in catalogue.PARAMETERS or not self._settings["parameters"]:
            return request.refuse(start, "ParameterNotFound", f"Parameter {name} not found.")
        value = {"Name": name, "Type": "String", "Value": catalogue.PARAMETERS[name], "Version": 1}
        return _json(start, {"Parameter": value})

    def _order(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        from tests.testbed.ec2.faults import Fault

        order = environ["PATH_INFO"].removeprefix("/_testbed/")
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        arguments = json.loads(body) if body else {}
        answer: Any = {}
        if order == "fault":
            self._faults.add(Fault.model_validate(arguments))
        elif order == "lift":
            self._faults.clear()
        elif order == "settings":
            self._settings.update(arguments)
            self._machines.boot_seconds = self._settings["boot_seconds"]
            self._machines.images = self._settings["images"]
        elif order == "reset":
            self._faults.clear()
            self._settings.update(_USUAL)
            self._machines.boot_seconds = 0
            self._machines.images = {}
            self._machines.reset()
            with self._lock:
                self._requests.clear()
        elif order == "requests":
            with self._lock:
                answer = dict(self._requests)
        elif order == "announce":
            self._machines.announced.add(arguments["instance"])
        elif order == "interrupt":
            self._machines.interrupt(arguments["instance"])
        elif order == "exec":
            done = self._machines.host(arguments["instance"]).exec(arguments["command"])
            answer = {"exit_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        elif order == "logs":
            answer = list(self._machines.logs)
        else:
            return _json(start, {"error": f"no order {order}"}, "404 Not Found")
        return _json(start, answer)


_USUAL = {"prices": True, "parameters": True, "boot_seconds": 0, "images": {}}

_STRANGER = {
    "ec2": ("AuthFailure", "AWS was not able to validate the provided access credentials", 401),
    "sts": ("InvalidClientTokenId", "The security token included in the request is invalid.", 403),
    "ssm": ("UnrecognizedClientException", "The security token included in the request is invalid.", 400),
    "pricing": ("UnrecognizedClientException", "The security token included in the request is invalid.", 400),
    "route53": ("InvalidClientTokenId", "The security token included in the request is invalid.", 403),
}


class Request:
    """A request as AWS sees it."""

    def __init__(self, environ: dict[str, Any], body: bytes) -> None:
        scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
        self.key_id, self.region, self.service = scope.groups() if scope else ("", "", "")
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        self.json: dict[str, Any] = json.loads(body) if target and body else {}
        self.form = dict(urllib.parse.parse_qsl(body.decode(errors="replace"))) if not target else {}
        self.action = target.rpartition(".")[2] or self.form.get("Action") or environ["REQUEST_METHOD"]

    def values(self, name: str) -> set[str]:
        """What a filter of EC2 lets through; empty: there is no such filter."""
        numbers = [
            key.split(".")[1]
            for key, value in self.form.items()
            if re.fullmatch(r"Filter\.\d+\.Name", key) and value == name
        ]
        return {
            value
            for key, value in self.form.items()
            for number in numbers
            if key.startswith(f"Filter.{number}.Value.")
        }

    def properties(self) -> dict[str, str]:
        """What faults can choose by."""
        from moto.ec2.models import ec2_backends

        found = {"region": self.region, "service": self.service}
        if self.action == "RunInstances":
            found["type"] = self.form.get("InstanceType", "")
            found["market"] = self.form.get("InstanceMarketOptions.MarketType", "on-demand")
            subnet = self.form.get("NetworkInterface.1.SubnetId")
            if subnet:
                found["zone"] = ec2_backends[ACCOUNT][self.region].get_subnet(subnet).availability_zone
        return found

    def refuse(self, start: StartResponse, code: str, message: str, status: int = 400) -> list[bytes]:
        """Answer with an error in the form of the service."""
        if self.json or self.service in ("ssm", "pricing"):
            return _json(start, {"__type": code, "message": message}, f"{status} Refused")
        error = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
        if self.service in ("sts", "route53"):
            text = f"<ErrorResponse>{error}<RequestId>0</RequestId></ErrorResponse>"
        else:
            text = f"<Response><Errors>{error}</Errors><RequestID>0</RequestID></Response>"
        body = text.encode()
        start(f"{status} Refused", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
        return [body]


def _json(start: StartResponse, answer: Any, status: str = "200 OK") -> list[bytes]:
    body = json.dumps(answer).encode()
    start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _xml(start: StartResponse, text: str) -> list[bytes]:
    body = text.encode()
    start("200 OK", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _spot_prices(answer: bytes) -> bytes:
    def priced(match: re.Match[str]) -> str:
        price = catalogue.PRICES.get(match[1])
        # Spot prices of all types are known, as at AWS.
        return match[0].replace("0.00001", f"{(price or 0.5) * catalogue.SPOT:.6f}")

    item = re.compile(r"<item>.*?<instanceType>([^<]+)</instanceType>.*?</item>", re.DOTALL)
    return item.sub(priced, answer.decode()).encode()


def _internet(region: str) -> None:
    """Give the default VPC of a region what every real one has: a way to the internet."""
    from moto.ec2.models import ec2_backends

    backend = ec2_backends[ACCOUNT][region]
    vpc = next(iter(backend.describe_vpcs(filters={"is-default": "true"})))
    if backend.describe_internet_gateways(filters={"attachment.vpc-id": [vpc.id]}):
        return
    gateway = backend.create_internet_gateway()
    backend.attach_internet_gateway(gateway.id, vpc.id)
    for table in backend.describe_route_tables(filters={"vpc-id": vpc.id}):
        backend.create_route(table.id, "0.0.0.0/0", gateway_id=gateway.id)


def _shorten() -> None:
    """Leave most instance types out of moto's books."""
    from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES, InstanceTypeBackend

    for name in [name for name in INSTANCE_TYPES if name.partition(".")[0] not in catalogue.FAMILIES]:
        del INSTANCE_TYPES[name]
    InstanceTypeBackend.instance_types = [
        kind for kind in InstanceTypeBackend.instance_types if kind.name in INSTANCE_TYPES
    ]
    for regions in INSTANCE_TYPE_OFFERINGS.values():
        for region, offerings in regions.items():
            regions[region] = [entry for entry in offerings if entry["InstanceType"] in INSTANCE_TYPES]


def main(with_hosts: bool) -> None:
    """Serve until standard input ends."""
    directory = tempfile.TemporaryDirectory(prefix="pd-ec2-")
    images = Path(directory.name) / "images.json"
    catalogue.write_images(images)
    os.environ["MOTO_AMIS_PATH"] = str(images)
    os.environ["MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION"] = "true"
    os.environ["MOTO_ENABLE_AMI_VALIDATION"] = "true"

    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    from tests.testbed.ec2.machines import Machines
    from tests.testbed.testbed import Testbed

    _shorten()
    testbed = Testbed() if with_hosts else None
    try:
        machines = Machines(testbed)
        machines.install()
        application = Application(DomainDispatcherApplication(create_backend_app), machines)
        server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(
            json.dumps({"port": server.server_port, "network": testbed and str(testbed.network)}),
            flush=True,
        )
        for line in sys.stdin:
            _internet(line.strip())
            print("ok", flush=True)
    finally:
        if testbed is not None:
            testbed.close()
        directory.cleanup()


if __name__ == "__main__":
    main("--hosts" in sys.argv)
