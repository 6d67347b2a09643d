"""What a gateway writes of a service's requests: one JSON object a line."""

from __future__ import annotations

__all__ = ["FORMAT", "is_request_of"]

# The path is without the query, and no header is written: both may hold secrets.
_SECONDS = "%[var(txn.log_began),div(1000),utime(%Y-%m-%dT%H:%M:%S)]"
_MILLISECONDS = "%[var(txn.log_began),word(1,.),bytes(10,3)]"
_FIELDS = {
    "time": f'"{_SECONDS}.{_MILLISECONDS}Z"',
    "service": '"%[be_name,field(2,:)]"',
    "revision": "%{+Q}[srv_name,field(-2,-)]",
    "replica": "%{+Q}[srv_name]",
    "client": '"%[src]"',
    "method": '"%[var(txn.log_method)]"',
    "path": '"%[var(txn.log_path)]"',
    "status": "%[var(txn.log_status,null)]",
    "request_bytes": "%U",
    "response_bytes": "%B",
    "duration_ms": "%[date(0,ms),sub(txn.log_began)]",
    "first_byte_ms": "%[var(txn.log_first_byte,null)]",
    # Not a number: HAProxy writes `+1` where the last attempt went to another replica.
    "retries": '"%rc"',
    "termination": '"%ts"',
}

FORMAT = "{" + ",".join(f'"{name}":{value}' for name, value in _FIELDS.items()) + "}"
"""HAProxy's `log-format` of a request."""


def is_request_of(line: str, service: str) -> bool:
    """Return whether a line of a gateway's output is about a request of a service.

    Args:
        line: The line.
        service: The service.
    """
    # No value can hold these quotes: they are escaped there.
    return line.startswith('{"time":') and f'","service":"{service}",' in line
