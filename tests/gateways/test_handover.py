from __future__ import annotations

from prefect_dstack.gateways.handover import NONE_FAILING, failing
from prefect_dstack.gateways.state import GatewayState, Route, RouteReplica

HEADER = (
    "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state "
    "srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port "
    "srv_check_addr srv_agent_addr srv_agent_port"
)
STATE = GatewayState(name="gate", base_port=80, bind_address="*").with_route(
    Route(
        service="hello",
        port=80,
        replicas={
            name: RouteReplica(name=name, address="10.0.0.1", port=8000, checked=name != "unchecked")
            for name in ("down", "up", "disabled", "moved", "unchecked")
        },
    )
)


def line(name: str, operation: int, administration: int = 0, port: int = 8000) -> str:
    return (
        f"3 service:hello 1 {name} 10.0.0.1 {operation} {administration} 100 100 5 6 3 0 6 0 0 0 - "
        f"{port} - 0 0 - - 0"
    )


def test_only_replicas_that_fail_their_checks_are_handed_over() -> None:
    answer = "\n".join(
        (
            "1",
            HEADER,
            line("down", 0),
            line("up", 2),
            line("disabled", 0, 1),
            line("moved", 0, port=9),
            line("unchecked", 0),
            line("unknown", 0),
        )
    )
    assert failing(answer, STATE) == f"1\n{HEADER}\n{line('down', 0)}\n"


def test_nothing_is_handed_over_of_nothing() -> None:
    assert failing("", STATE) == NONE_FAILING
