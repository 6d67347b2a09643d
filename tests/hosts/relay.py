"""What `nc` does: join standard input and output with a TCP connection."""

from __future__ import annotations

import os
import select
import shlex
import socket
import sys

# As a ProxyCommand, without its arguments.
RELAY = shlex.join([sys.executable, "-S", __file__])


def main() -> None:
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as peer:
        print("relay: connected", file=sys.stderr)
        while True:
            for ready in select.select([sys.stdin, peer], [], [])[0]:
                data = os.read(0, 65536) if ready is sys.stdin else peer.recv(65536)
                if not data:
                    return
                if ready is sys.stdin:
                    peer.sendall(data)
                else:
                    os.write(1, data)


if __name__ == "__main__":
    main()
