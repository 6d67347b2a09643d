from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.hosts.remote_ports import listening_ports

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:A1B2 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0
"""


def test_listening_ports_are_read_and_connections_are_not() -> None:
    assert listening_ports(TABLE) == {8080, 22}


@given(st.text(alphabet="0123456789ABCDEF: \n", max_size=200))
def test_a_table_that_is_cut_short_does_no_harm(table: str) -> None:
    try:
        ports = listening_ports(table)
    except ValueError:
        pytest.fail("the kernel's table is read line by line")
    assert all(isinstance(port, int) for port in ports)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own table")
def test_finds_a_port_of_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server.getsockname()[1] in listening_ports(Path("/proc/net/tcp").read_text())
