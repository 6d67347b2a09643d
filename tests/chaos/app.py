"""The application of the services: the example, as `behaviour.json` beside it says.

It also answers POST, which takes its time, and which no gateway may send twice.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
import time
from pathlib import Path

from examples.hello import app as example

BEHAVIOUR = json.loads(Path("behaviour.json").read_text())


class Handler(example.Handler):
    """Answers with the version of its code."""

    def do_GET(self) -> None:  # noqa: N802 - as its base class calls it
        if self.path == "/health" and BEHAVIOUR["unhealthy"]:
            self.send_error(503)
            return
        super().do_GET()

    def do_POST(self) -> None:  # noqa: N802 - as above
        time.sleep(0.05)
        self.do_GET()

    def end_headers(self) -> None:
        self.send_header("X-Code", str(BEHAVIOUR["code"]))
        super().end_headers()


class Server(example.Server):
    """Listens at every address in a container, which publishes the port of one."""

    def server_bind(self) -> None:
        self.server_address = (os.environ.get("LISTEN", "127.0.0.1"), self.server_address[1])
        # Not the one of HTTPServer, which asks a nameserver for this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "application", self.server_address[1]


if BEHAVIOUR["exits"]:
    sys.exit("this version does not start")
example.Handler = Handler  # type: ignore[misc]
example.Server = Server  # type: ignore[misc]
example.main()
