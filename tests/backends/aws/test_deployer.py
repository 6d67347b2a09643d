from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from prefect_dstack.backends.aws.deployer import private_source, public_address
from prefect_dstack.errors import ProvisioningError


@contextmanager
def answering(text: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_our_public_address_is_a_network_of_one() -> None:
    with answering(b"198.51.100.7\n") as url:
        assert public_address(url) == "198.51.100.7/32"


@pytest.mark.parametrize("text", [b"<html>Log in to the hotel's network</html>", b"", b"0.0.0.0/0"])
def test_an_answer_that_is_no_address_opens_nothing(text: bytes) -> None:
    with answering(text) as url, pytest.raises(ProvisioningError, match="set ssh_from"):
        public_address(url)


def test_no_answer_says_what_to_set() -> None:
    with pytest.raises(ProvisioningError, match="set ssh_from"):
        public_address("http://127.0.0.1:9")


def test_the_way_to_a_private_network_has_an_address() -> None:
    assert private_source("127.0.0.0/8") == "127.0.0.1/32"
