"""How much our gateway costs, beside a bare nginx and a bare HAProxy with the same features.

    python -m benchmarks.gateway [--rounds 3] [--seconds 1]

Everybody serves the same nginx on this machine. They take turns within each round, so that a machine that is
busy with something else is unfair to all alike; what counts are the ratios. The first is that of requests per
second, the second that of requests per second of CPU time, which holds on a busy machine too. Needs nginx,
openssl and wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.local import LocalPlace, haproxy_binary
from prefect_dstack.gateways.state import AcceptedToken, GatewayState, Route, RouteReplica
from prefect_dstack.gateways.template import render
from prefect_dstack.hosts.ports import free_port, port_is_free

HOST = "service-0.test"
TOKEN = "a-token-as-long-as-real-ones-are-0123456789"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
HEADERS = [f"Host: {HOST}", f"Authorization: Bearer {TOKEN}", "Accept: */*", "User-Agent: benchmark"]
CONNECTIONS = (1, 32)
# What our configuration measures durations with.
TIMING = re.compile(r"txn\.start|txn\.bucket")

NGINX = """
worker_processes {workers}; pid nginx.pid; error_log error.log; daemon off;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 100000000;
    upstream replicas {{ server 127.0.0.1:{upstream}; keepalive 64; }}
    {servers}
}}
"""
UPSTREAM = """
    server {{ listen 127.0.0.1:{port}; location / {{ default_type text/plain; return 200 "hello\\n"; }} }}
"""
PROXY = """
    server {{
        listen 127.0.0.1:{port}; listen 127.0.0.1:{tls} ssl;
        ssl_certificate {certificate}; ssl_certificate_key {certificate};
        server_name {host}; client_max_body_size 64m;
        location / {{
            proxy_pass http://replicas; proxy_http_version 1.1; proxy_buffering off;
            proxy_set_header Connection ""; proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $host;
        }}
    }}
"""
# What a person would write who wants routes by host, tokens, forwarded headers, checks and retries.
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 1h
    option idle-close-on-response
    option redispatch 1
    retry-on conn-failure empty-response
    http-reuse always
frontend http
    bind 127.0.0.1:{port}
    bind 127.0.0.1:{tls} ssl crt {certificate} alpn h2,http/1.1
    http-request del-header x-forwarded -m beg
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]
    use_backend %[req.hdr(host),host_only,lower,map_str(hosts.map)]
backend {host}
    balance leastconn
    {auth}
    http-request deny deny_status 413 if {{ req.hdr_val(content-length) gt 67108864 }}
    server r1 127.0.0.1:{upstream} check inter 2s observe layer4 error-limit 3 on-error mark-down
"""
AUTH = """http-request set-var(txn.digest) http_auth_bearer,sha2(256),hex,lower
    http-request deny deny_status 401 if !{ var(txn.digest),map_str(tokens.map) -m found }
    http-request del-header authorization"""


@dataclass
class Contender:
    """Somebody who answers requests, and what was measured of it by number of connections."""

    name: str
    url: str
    directory: Path
    rates: dict[int, list[float]] = field(default_factory=lambda: {number: [] for number in CONNECTIONS})
    p50: dict[int, list[float]] = field(default_factory=lambda: {number: [] for number in CONNECTIONS})
    p99: dict[int, list[float]] = field(default_factory=lambda: {number: [] for number in CONNECTIONS})

    cpu: dict[int, list[float]] = field(default_factory=lambda: {number: [] for number in CONNECTIONS})

    def measure(self, connections: int, seconds: int) -> None:
        headers = [argument for header in HEADERS for argument in ("-H", header)]
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *headers, self.url]
        before = self._cpu_time()
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        spent = self._cpu_time() - before
        if "Non-2xx" in output or "Socket errors" in output:
            raise SystemExit(f"{self.name}: requests failed:\n{output}")
        self.rates[connections].append(float(_found(r"Requests/sec:\s+([0-9.]+)", output)[0]))
        self.cpu[connections].append(spent / float(_found(r"([0-9]+) requests in", output)[0]) * 1e6)
        self.p50[connections].append(_milliseconds(*_found(r"50%\s+([0-9.]+)(us|ms|s)", output)))
        self.p99[connections].append(_milliseconds(*_found(r"99%\s+([0-9.]+)(us|ms|s)", output)))

    def _cpu_time(self) -> float:
        """Sum up the seconds that its processes, which are those in its directory, have used."""
        total = 0.0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd() == str(self.directory):
                    times = process.cpu_times()
                    total += times.user + times.system
        return total


def _found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"wrk said nothing that matches {pattern}:\n{text}")
    return match.groups()


def _milliseconds(number: str, unit: str) -> float:
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


@contextlib.contextmanager
def running(command: list[str], directory: Path, port: int) -> Iterator[None]:
    """Run a server until the block ends, in a session of its own as ours: the scheduler goes by sessions."""
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=directory, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 10
        while port_is_free(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not start: {(directory / 'output').read_text()}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def nginx(directory: Path, workers: int, upstream: int, servers: str, port: int) -> Iterator[None]:
    directory.mkdir()
    configuration = NGINX.format(workers=workers, upstream=upstream, servers=servers)
    (directory / "nginx.conf").write_text(configuration)
    with running(["nginx", "-p", str(directory), "-c", "nginx.conf"], directory, port):
        yield


@contextlib.contextmanager
def haproxy(directory: Path, *, auth: bool, **values: object) -> Iterator[None]:
    directory.mkdir()
    (directory / "hosts.map").write_text(f"{HOST} {HOST}\n")
    (directory / "tokens.map").write_text(f"{DIGEST} 1\n")
    (directory / "haproxy.cfg").write_text(HAPROXY.format(host=HOST, auth=AUTH if auth else "", **values))
    with running([haproxy_binary(), "-db", "-f", "haproxy.cfg"], directory, int(str(values["port"]))):
        yield


def desired(services: int, port: int, upstream: int, *, auth: bool, access_log: bool = False) -> GatewayState:
    """Return the state of a gateway with a number of services, of which only the first is asked."""
    replica = RouteReplica(name="r1", address="127.0.0.1", port=upstream)
    routes = {
        f"service-{number}": Route(
            service=f"service-{number}",
            hosts=(f"service-{number}.test",),
            port=port,
            auth=auth,
            access_log=access_log,
            tokens={"t": AcceptedToken(sha256=DIGEST)},
            replicas={"r1": replica.model_copy(update={"checked": number == 0})},
        )
        for number in range(services)
    }
    return GatewayState(name="benchmark", base_port=port, routes=routes)


@contextlib.contextmanager
def untimed(directory: Path, upstream: int) -> Iterator[int]:
    """Run HAProxy with our configuration, less what measures how long replicas take."""
    port = free_port()
    files = render(desired(1, port, upstream, auth=True))
    lines = files["haproxy.cfg"].decode().splitlines(keepends=True)
    files["haproxy.cfg"] = "".join(line for line in lines if not TIMING.search(line)).encode()
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with running([haproxy_binary(), "-db", "-f", "haproxy.cfg"], directory, port):
        yield port


@contextlib.contextmanager
def ours(
    directory: Path, services: int, *, auth: bool, access_log: bool = False, upstream: int, pem: bytes
) -> Iterator[tuple[int, int]]:
    """Run our gateway with a number of services; only the first is asked."""
    port, tls = free_port(), free_port()
    gateway = Gateway(LocalPlace("benchmark", directory))
    gateway.ensure_running(
        desired(services, port, upstream, auth=auth, access_log=access_log).model_copy(
            update={"https_port": tls}
        )
    )
    try:
        gateway.install_certificate(HOST, pem)
        yield port, tls
    finally:
        gateway.destroy()


def certificate(path: Path) -> bytes:
    """Make a key and a certificate in one file."""
    key, signed = path.with_suffix(".key"), path.with_suffix(".crt")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        f"/CN={HOST}",
    ]
    subprocess.run([*command, "-keyout", str(key), "-out", str(signed)], capture_output=True, check=True)
    path.write_bytes(key.read_bytes() + signed.read_bytes())
    return path.read_bytes()


@contextlib.contextmanager
def contenders(directory: Path) -> Iterator[list[Contender]]:
    """Start everybody."""
    pem_file = directory / "certificate.pem"
    pem, upstream = certificate(pem_file), free_port()
    found = [Contender("direct", f"http://127.0.0.1:{upstream}/", directory / "upstream")]
    with contextlib.ExitStack() as stack:
        servers = UPSTREAM.format(port=upstream)
        stack.enter_context(nginx(directory / "upstream", 1, upstream, servers, upstream))
        port, tls = free_port(), free_port()
        servers = PROXY.format(port=port, tls=tls, certificate=pem_file, host=HOST)
        stack.enter_context(nginx(directory / "nginx", 2, upstream, servers, port))
        found += [
            Contender("nginx", f"http://127.0.0.1:{port}/", directory / "nginx"),
            Contender("nginx, TLS", f"https://127.0.0.1:{tls}/", directory / "nginx"),
        ]
        for auth in (False, True):
            port, tls = free_port(), free_port()
            values = {"port": port, "tls": tls, "upstream": upstream, "certificate": pem_file}
            place = directory / f"haproxy-{auth}"
            stack.enter_context(haproxy(place, auth=auth, **values))
            suffix = ", tokens" if auth else ""
            found += [
                Contender(f"haproxy{suffix}", f"http://127.0.0.1:{port}/", place),
                Contender(f"haproxy{suffix}, TLS", f"https://127.0.0.1:{tls}/", place),
            ]
        for services, auth in ((1, False), (1, True), (100, True), (1000, True)):
            place = directory / f"ours-{services}-{auth}"
            started = ours(place, services, auth=auth, upstream=upstream, pem=pem)
            port, tls = stack.enter_context(started)
            suffix = (", tokens" if auth else "") + (f", {services} services" if services > 1 else "")
            found.append(Contender(f"ours{suffix}", f"http://127.0.0.1:{port}/", place))
            if services in (1, 1000):
                found.append(Contender(f"ours{suffix}, TLS", f"https://127.0.0.1:{tls}/", place))
        place = directory / "ours-untimed"
        port = stack.enter_context(untimed(place, upstream))
        found.append(Contender("ours, tokens, untimed", f"http://127.0.0.1:{port}/", place))
        place = directory / "ours-access-log"
        started = ours(place, 1, auth=True, access_log=True, upstream=upstream, pem=pem)
        port, _ = stack.enter_context(started)
        found.append(Contender("ours, tokens, access log", f"http://127.0.0.1:{port}/", place))
        yield found


RIVALS = {
    "ours": ("nginx", "haproxy"),
    "ours, TLS": ("nginx, TLS", "haproxy, TLS"),
    "ours, tokens": ("nginx", "haproxy, tokens", "ours, tokens, untimed"),
    "ours, tokens, TLS": ("nginx, TLS", "haproxy, tokens, TLS"),
    "ours, tokens, access log": ("ours, tokens", "haproxy, tokens"),
    "ours, tokens, 100 services": ("ours, tokens", "haproxy, tokens"),
    "ours, tokens, 1000 services": ("ours, tokens", "haproxy, tokens"),
    "ours, tokens, 1000 services, TLS": ("ours, tokens, TLS", "haproxy, tokens, TLS"),
}


def report(found: list[Contender]) -> None:
    """Print the medians, and the ratios within each round."""
    by_name = {contender.name: contender for contender in found}
    for connections in CONNECTIONS:
        print(f"\n{connections} connection{'s' if connections > 1 else ''}")
        print(f"{'':34}{'requests/s':>11}{'CPU us':>8}{'p50 ms':>9}{'p99 ms':>9}   ratios")
        for it in found:
            ratios = ", ".join(_ratios(it, by_name[rival], connections) for rival in RIVALS.get(it.name, ()))
            print(
                f"{it.name:34}{median(it.rates[connections]):11,.0f}{median(it.cpu[connections]):8.1f}{median(it.p50[connections]):9.2f}"
                f"{median(it.p99[connections]):9.2f}   {ratios}"
            )


def _ratios(ours: Contender, rival: Contender, connections: int) -> str:
    rates = zip(ours.rates[connections], rival.rates[connections], strict=True)
    costs = zip(ours.cpu[connections], rival.cpu[connections], strict=True)
    rate = median(mine / theirs for mine, theirs in rates)
    efficiency = median(theirs / mine for mine, theirs in costs)
    return f"{rate:.2f} / {efficiency:.2f} of {rival.name}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often everybody has a turn")
    parser.add_argument(
        "--seconds", type=int, default=1, help="how long a turn is, for each number of connections"
    )
    arguments = parser.parse_args()
    if missing := [tool for tool in ("nginx", "openssl", "wrk") if shutil.which(tool) is None]:
        sys.exit(f"missing: {', '.join(missing)} (Debian: apt-get install nginx-light openssl wrk)")
    with tempfile.TemporaryDirectory() as directory, contenders(Path(directory)) as found:
        for contender in found:
            contender.measure(CONNECTIONS[-1], 1)
            for results in (contender.rates, contender.cpu, contender.p50, contender.p99):
                results[CONNECTIONS[-1]].clear()
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
            for connections in CONNECTIONS:
                for contender in found if number % 2 else found[::-1]:
                    contender.measure(connections, arguments.seconds)
        report(found)


if __name__ == "__main__":
    main()
