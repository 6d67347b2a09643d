"""How fast our forwarded ports are, beside those of `ssh -L`.

    python -m benchmarks.forwarding [--rounds 5] [--megabytes 500]

Both lead to the same program on the same host, and take turns within each round, so that a machine that is
busy with something else is unfair to both alike; what counts is the ratio. The client is a process of its
own. Run it from the root of the repository, as root for the host.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from prefect_dstack.configurations import PortMapping
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.forwarding import Forwarder
from prefect_dstack.hosts.ports import free_port, port_is_free
from prefect_dstack.hosts.ssh_machine import SshMachine
from tests.polling import wait_until
from tests.testbed.host import Host
from tests.testbed.testbed import Testbed

# Sends as many bytes as its argument says after a ">", and takes as many after a "<".
SERVER = """
import socket, sys, threading
size, block = int(sys.argv[1]), bytes(1 << 20)
def serve(peer):
    with peer:
        way = peer.recv(1)
        left = size
        while left:
            if way == b">":
                peer.sendall(block[:left])
                left -= min(left, len(block))
            else:
                left -= len(peer.recv(min(left, len(block))))
        peer.sendall(b"!")
server = socket.create_server(("127.0.0.1", 8000))
while True:
    threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
"""
CLIENT = """
import socket, sys, time
port, way, size = int(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3])
block = bytearray(1 << 20)
began = time.perf_counter()
with socket.create_connection(("127.0.0.1", port)) as peer:
    peer.sendall(way)
    if way == b"<":
        for _ in range(size >> 20):
            peer.sendall(block)
        assert peer.recv(1) == b"!"
    else:
        got = 0
        while count := peer.recv_into(block):
            got += count
        assert got == size + 1, got
print(time.perf_counter() - began)
"""
PING = """
import socket, sys, time
began = time.perf_counter()
for _ in range(int(sys.argv[2])):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as peer:
        peer.sendall(b"hello")
        assert peer.recv(9) == b"hello"
print((time.perf_counter() - began) / int(sys.argv[2]))
"""
ECHO = """
import socket, threading
server = socket.create_server(("127.0.0.1", 8001), backlog=128)
def serve(peer):
    with peer:
        peer.sendall(peer.recv(9))
while True:
    threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
"""
CONNECTIONS = 100


def client(program: str, *arguments: object) -> float:
    """Run a client to its end, and return the seconds that it says."""
    command = [sys.executable, "-S", "-c", program, *map(str, arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@contextlib.contextmanager
def openssh(host: Host, directory: Path) -> Iterator[dict[int, int]]:
    """Lead ports to a host with OpenSSH; yields the local ports by those of the host."""
    ports = {8000: free_port(), 8001: free_port()}
    known = directory / "known_hosts"
    known.write_text(host.known_hosts_line)
    forwards = [
        part for there, here in ports.items() for part in ("-L", f"127.0.0.1:{here}:127.0.0.1:{there}")
    ]
    command = ["ssh", "-N", "-F", "none", "-i", str(host.identity_file), "-o", f"UserKnownHostsFile={known}"]
    process = subprocess.Popen([*command, *forwards, f"root@{host.address}"])
    try:
        wait_until(lambda: not any(map(port_is_free, ports.values())), 10, "ssh listens")
        yield ports
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def ours(host: Host) -> Iterator[dict[int, int]]:
    """Lead ports to a host with our own forwarder."""
    access = SshAccess(
        hostname=host.address, user="root", identity_file=host.identity_file, host_key=host.host_key
    )
    mappings = [PortMapping.model_validate(f"*:{port}") for port in (8000, 8001)]
    with Forwarder(SshMachine(access), mappings) as forwarder:
        yield {port.container_port: port.local_port for port in forwarder.ports}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--megabytes", type=int, default=500, help="how much is carried each time")
    arguments = parser.parse_args()
    size = arguments.megabytes << 20
    measures: dict[str, Callable[[dict[int, int]], float]] = {
        f"{arguments.megabytes} MB from the host, s": lambda ports: client(CLIENT, ports[8000], ">", size),
        f"{arguments.megabytes} MB to the host, s": lambda ports: client(CLIENT, ports[8000], "<", size),
        "a connection, ms": lambda ports: client(PING, ports[8001], CONNECTIONS) * 1000,
    }
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in measures}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prefect-dstack-benchmark-")))
        os.environ["HOME"] = str(directory)
        host = stack.enter_context(Testbed()).host("forwarding", docker="absent")
        for program in (SERVER, ECHO):
            server = host.popen(["python3", "-S", "-c", program, str(size)])
            stack.callback(server.wait)
            stack.callback(server.kill)
        listening = {"tcp 127.0.0.1:8000", "tcp 127.0.0.1:8001"}
        wait_until(lambda: listening <= host.listening_ports(), 10, "the programs listen")
        theirs, own = stack.enter_context(openssh(host, directory)), stack.enter_context(ours(host))
        for ports in (theirs, own):
            client(PING, ports[8001], 1)
        for _ in range(arguments.rounds):
            for name, measure in measures.items():
                before = measure(theirs)
                busy = time.process_time()
                results[name].append((before, measure(own), time.process_time() - busy))
    print("| | ssh -L | ours | ratio | our CPU time, s |\n| :--- | ---: | ---: | ---: | ---: |")
    for name, rounds in results.items():
        one, other, cpu = (median(values) for values in zip(*rounds, strict=True))
        ratio = median(mine / yours for yours, mine, _ in rounds)
        print(f"| {name} | {one:.2f} | {other:.2f} | {ratio:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
