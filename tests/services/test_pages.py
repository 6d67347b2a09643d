"""The page of a service in the Prefect UI."""

from __future__ import annotations

import re
from datetime import timedelta

from prefect_dstack.backends.base import Instance
from prefect_dstack.domain.evaluation import Evaluation
from prefect_dstack.domain.record import Decision, Deploying, Endpoint, PendingApproval, ServiceRecord, now
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.base import Replica, ReplicaStatus
from prefect_dstack.services.pages import approval_page, service_page
from tests.domain.test_record import revision

URL = "https://shop.test"


def serving(**endpoint: object) -> ServiceRecord:
    """A service whose first revision serves."""
    record = ServiceRecord(name="shop", salt="pepper")
    record = record.begun(revision(1, created_by="Ada"), Deploying(revision=1, flow_run="one"), 10)
    fields = {"url": URL, "service": "shop", "revision": 1, "replicas": ["shop-1-0"], **endpoint}
    return record.served(1, Endpoint.model_validate(fields))


def pending() -> ServiceRecord:
    """A service whose second revision waits for approval, after its evaluation."""
    record = serving().begun(revision(2, created_by="Grace"), Deploying(revision=2, flow_run="two"), 10)
    record = record.evaluated(2, Evaluation(passed=True, score=0.5, table=[{"a|b": "c\nd"}, {"e": None}]))
    return record.waiting(
        PendingApproval(
            revision=2,
            flow_run="two",
            requested_at=now(),
            expires_at=now() + timedelta(hours=1),
            question="Send the requests to shop@2?",
            private_url="http://127.0.0.1:9000",
            machine="here",
        )
    )


def python_of(page: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    compile(code, "page", "exec")
    return str(code)


def test_it_says_how_a_service_is_called() -> None:
    page = service_page(serving())

    assert f"**shop@1 serves** at <{URL}> with 1 replica." in page
    assert f"$ curl {URL}/" in page
    assert "TOKEN" not in page
    assert URL in python_of(page)


def test_nothing_is_said_of_prices_where_all_is_free() -> None:
    found = FoundReplica(
        instance=Instance(backend="local", id="here", name="here", price=0.0),
        replica=Replica(
            stamp=Stamp(service="shop", revision=1, replica=0, flow_run="one"),
            id="1",
            address="127.0.0.1",
            port=8000,
            runtime="process",
        ),
        status=ReplicaStatus(state="running"),
    )
    page = service_page(serving(), [found])

    assert "| shop-1-0 | process | here | local |" in page
    assert "price" not in page
    assert "$0" not in page


def test_a_token_is_asked_for_where_one_is_needed() -> None:
    page = service_page(serving(auth=True))

    assert f'$ curl -H "Authorization: Bearer $TOKEN" {URL}/' in page
    assert "prefect-dstack token create --service shop" in page
    assert "TOKEN" in python_of(page)


def test_a_model_is_called_as_openai_does() -> None:
    page = service_page(serving(auth=True, openai_base_url=f"{URL}/v1", model="llama"))

    assert f'OpenAI(base_url="{URL}/v1", api_key=os.environ["TOKEN"])' in python_of(page)
    assert 'model="llama"' in page


def test_a_failure_comes_first_with_what_serves_now() -> None:
    record = serving().begun(revision(2), Deploying(revision=2, flow_run="two"), 10).failed(2, "it exited")
    lines = service_page(record).splitlines()

    assert lines[2] == "> **shop@2 failed:** it exited"
    assert lines[4].startswith("**shop@1 serves**")


def test_what_waits_is_shown_with_its_private_endpoint_and_table() -> None:
    record = pending()
    assert record.approval is not None
    page = service_page(record)

    assert approval_page(record, record.approval) in page
    assert "Private endpoint, on here: <http://127.0.0.1:9000>" in page
    assert "Passed, score 0.5" in page
    assert r"| a\|b | e |" in page
    assert "| c d |  |" in page
    assert "| shop@2 | waiting |" in page


def test_a_stopped_service_has_no_link() -> None:
    page = service_page(serving().stopped())

    assert "**Stopped.**" in page
    assert URL not in page


def test_the_history_says_who_decided() -> None:
    decision = Decision(approved=True, by="Ada", at=now(), reason="it is | good")
    record = serving()
    record = record.model_copy(update={"revisions": [record.revision(1).decided(decision)]})

    assert r"approved by Ada: it is \| good" in service_page(record)
