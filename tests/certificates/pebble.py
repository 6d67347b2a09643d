"""A real ACME server, Debian's `pebble`, and the name server that it asks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx

from prefect_dstack.certificates.authority import new_authority
from prefect_dstack.certificates.pem import new_key, private_pem
from prefect_dstack.hosts.ports import free_port
from tests.polling import wait_until

A, TXT = 1, 16


class NameServer:
    """Answers with one address for every host, and with the TXT records it was given; a `DnsRecords`."""

    def __init__(self) -> None:
        self.address = "127.0.0.1"
        self.txt: dict[str, list[str]] = {}
        self.asked: set[str] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def add_txt(self, name: str, values: Sequence[str]) -> None:
        self.txt[name] = list(values)

    def remove_txt(self, name: str) -> None:
        self.txt.pop(name, None)

    def stop(self) -> None:
        # Closing a socket wakes nobody who waits for it.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(4096)
            if not query:
                return
            labels, position = [], 12
            while length := query[position]:
                labels.append(query[position + 1 : position + 1 + length].decode())
                position += 1 + length
            question = query[12 : position + 5]
            name, (kind,) = ".".join(labels).lower(), struct.unpack("!H", query[position + 1 : position + 3])
            self.asked.add(name)
            data: list[bytes] = []
            if kind == A:
                data = [socket.inet_aton(self.address)]
            elif kind == TXT:
                data = [bytes([len(value)]) + value.encode() for value in self.txt.get(name, [])]
            answers = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(it)) + it for it in data)
            header = query[:2] + struct.pack("!HHHHH", 0x8580, 1, len(data), 0, 0)
            self._socket.sendto(header + question + answers, sender)


class Pebble:
    """An ACME server that validates at `http_port`, and whose certificates last for `lifetime`.

    Args:
        directory: For its files.
        http_port: Where it looks for the answers to HTTP-01.
        lifetime: Of its certificates, in seconds.
    """

    def __init__(self, directory: Path, http_port: int, lifetime: int = 90 * 86400) -> None:
        self.directory = directory
        self.names = NameServer()
        self.http_port = http_port
        self.port, self._management = free_port(), free_port()
        self.url = f"https://127.0.0.1:{self.port}/dir"
        now = datetime.now(UTC)
        authority, key = new_authority(now), new_key()
        directory.mkdir(parents=True, exist_ok=True)
        self.trusted = directory / "trusted.pem"
        self.trusted.write_text(authority.certificate)
        (directory / "cert.pem").write_bytes(authority.issue(key, ["127.0.0.1"], now))
        (directory / "key.pem").write_bytes(private_pem(key))
        configuration = {
            "pebble": {
                "listenAddress": f"127.0.0.1:{self.port}",
                "managementListenAddress": f"127.0.0.1:{self._management}",
                "certificate": str(directory / "cert.pem"),
                "privateKey": str(directory / "key.pem"),
                "httpPort": http_port,
                "tlsPort": free_port(),
                "ocspResponderURL": "",
                "certificateValidityPeriod": lifetime,
                "profiles": {"default": {"description": "for tests", "validityPeriod": lifetime}},
            }
        }
        (directory / "pebble.json").write_text(json.dumps(configuration))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / "pebble.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("pebble", "-config", str(self.directory / "pebble.json")),
                    *("-dnsserver", f"127.0.0.1:{self.names.port}"),
                ],
                env={**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"},
                stdout=log,
                stderr=log,
            )

        def answers() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return self._get(self.url).is_success
            return False

        wait_until(answers, 60, "pebble answers")

    def root(self) -> str:
        """The certificate of the authority that signs, PEM; another one after each start."""
        return self._get(f"https://127.0.0.1:{self._management}/roots/0").text

    def _get(self, url: str) -> httpx.Response:
        return httpx.get(url, verify=ssl.create_default_context(cafile=self.trusted))

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def pebble(directory: Path, http_port: int, lifetime: int = 90 * 86400) -> Iterator[Pebble]:
    server = Pebble(directory, http_port, lifetime)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        server.names.stop()


def missing() -> str | None:
    """Why there is no ACME server, if there is none."""
    return None if shutil.which("pebble") else "pebble is missing (apt-get install pebble)"
