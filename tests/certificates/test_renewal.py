"""Which certificates are needed, and when a new one is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.certificates.pem import Validity
from prefect_dstack.certificates.renewal import RequiredCertificate, due_at, is_due, wanted
from prefect_dstack.configurations.gateway import Certificate
from prefect_dstack.gateways.state import Route
from tests.certificates.conftest import NOW

ACME = Certificate(type="acme")
DNS = Certificate(type="acme", challenge="dns-01")
OURS = Certificate(type="self-signed")
FILE = Certificate(type="file", cert_file="cert.pem", key_file="key.pem")


def route(service: str, *hosts: str, https: bool = True) -> Route:
    return Route(service=service, hosts=hosts, port=80, https_redirect=https)


def valid(days: float, *hosts: str) -> Validity:
    return Validity(serial="1", hosts=hosts, not_before=NOW, not_after=NOW + timedelta(days=days))


class TestWanted:
    def test_is_one_for_each_host_name_by_http(self) -> None:
        routes = [route("a", "a.example.com"), route("b", "b.example.com", "www.example.net")]

        assert wanted(ACME, "example.com", "192.0.2.1", routes) == [
            RequiredCertificate("a.example.com", ("a.example.com",)),
            RequiredCertificate("b.example.com", ("b.example.com",)),
            RequiredCertificate("www.example.net", ("www.example.net",)),
        ]

    @pytest.mark.parametrize("certificate", [DNS, OURS])
    def test_is_one_for_all_directly_below_the_domain_otherwise(self, certificate: Certificate) -> None:
        routes = [
            route("a", "a.example.com"),
            route("b", "b.example.com", "example.com"),
            route("c", "x.c.example.com"),
        ]

        assert wanted(certificate, "example.com", "192.0.2.1", routes) == [
            RequiredCertificate("wildcard_.example.com", ("*.example.com", "example.com")),
            RequiredCertificate("x.c.example.com", ("x.c.example.com",)),
        ]

    def test_is_one_for_the_address_where_there_is_no_name(self) -> None:
        assert wanted(OURS, None, "192.0.2.1", [route("a")]) == [
            RequiredCertificate("address_", ("192.0.2.1",))
        ]

    def test_is_none_for_services_without_https(self) -> None:
        assert wanted(ACME, "example.com", "192.0.2.1", [route("a", "a.example.com", https=False)]) == []

    def test_is_one_for_the_address_of_all_models_without_which_services_are_reached(self) -> None:
        routes = [route("a", "a.example.com")]
        models = "gateway.example.com"

        assert wanted(ACME, "example.com", "192.0.2.1", routes, models)[1:] == [
            RequiredCertificate(models, (models,), vital=False)
        ]
        # What services need is not needed less because models share it.
        for certificate in (DNS, OURS):
            (shared,) = wanted(certificate, "example.com", "192.0.2.1", routes, models)
            assert (shared.name, shared.vital) == ("wildcard_.example.com", True)

    def test_is_what_a_file_holds_even_before_the_first_service(self) -> None:
        assert wanted(FILE, None, "192.0.2.1", []) == [RequiredCertificate("file_", ())]


class TestDue:
    @given(st.floats(0.001, 5000))
    def test_when_two_thirds_are_over(self, days: float) -> None:
        certificate = valid(days)
        lifetime = timedelta(days=days)

        assert not is_due(certificate, NOW + lifetime * 0.66)
        assert is_due(certificate, NOW + lifetime * 0.67)
        assert NOW <= due_at(certificate) <= certificate.not_after

    def test_after_60_of_90_days(self) -> None:
        assert due_at(valid(90)) == datetime(2026, 4, 30, tzinfo=UTC)


class TestCovers:
    @pytest.mark.parametrize(
        ("host", "covered"),
        [
            ("a.example.com", True),
            ("example.com", False),
            ("x.a.example.com", False),
            ("*.example.com", True),
            ("192.0.2.1", True),
            ("0.2.1", False),
        ],
    )
    def test_one_label_by_a_wildcard(self, host: str, covered: bool) -> None:
        assert valid(1, "*.example.com", "192.0.2.1").covers(host) is covered
