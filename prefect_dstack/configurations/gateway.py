"""`type: gateway`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from prefect_dstack.configurations.base import ConfigurationModel, Model, refuse
from prefect_dstack.configurations.interpolation import Places
from prefect_dstack.configurations.names import (
    BackendName,
    Email,
    GatewayDomain,
    Identifier,
    LocalPath,
    Name,
    Network,
    Tags,
    WebAddress,
)
from prefect_dstack.configurations.ports import Port
from prefect_dstack.configurations.scalars import Positive
from prefect_dstack.configurations.service import Router
from prefect_dstack.configurations.ssh import SshHost

_KEYS_BY_TYPE = {
    "auto": set[str](),
    "acme": {"acme_url", "email", "challenge"},
    "file": {"cert_file", "key_file"},
    "self-signed": set[str](),
    "acm": {"arn"},
    "gcp-cm": {"name"},
}


CertificateType = Annotated[
    Literal["auto", "acme", "file", "self-signed", "acm", "gcp-cm"],
    BeforeValidator(
        lambda value: "acme" if value == "lets-encrypt" else value,
        json_schema_input_type=Literal[
            "auto", "acme", "lets-encrypt", "file", "self-signed", "acm", "gcp-cm"
        ],
    ),
]


class Certificate(Model):
    """Where a gateway's certificate comes from."""

    type: CertificateType = Field(
        description="The origin: acme (or lets-encrypt), file, self-signed, acm (AWS), gcp-cm (GCP), or auto."
    )
    acme_url: WebAddress | None = Field(
        default=None, description="The directory of the ACME server; Let's Encrypt's if not given."
    )
    email: Email | None = Field(default=None, description="The address that the ACME server may write to.")
    challenge: Literal["http-01", "dns-01"] | None = Field(
        default=None, description="How the ACME server checks that the domain is ours: http-01 or dns-01."
    )
    cert_file: LocalPath | None = Field(
        default=None, description="The path of the certificate and its chain, PEM."
    )
    key_file: LocalPath | None = Field(default=None, description="The path of the private key, PEM.")
    arn: Identifier | None = Field(
        default=None, description="The ARN of the certificate in AWS Certificate Manager."
    )

    name: Identifier | None = Field(
        default=None, description="The full name of the certificate in Google's Certificate Manager."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        allowed = _KEYS_BY_TYPE[self.type]
        for key in ("acme_url", "email", "challenge", "cert_file", "key_file", "arn", "name"):
            if getattr(self, key) is not None and key not in allowed:
                refuse(f"means nothing to a certificate of type {self.type}; remove it", key=key)
            if (
                key in ("cert_file", "key_file", "arn", "name")
                and key in allowed
                and getattr(self, key) is None
            ):
                refuse(f"is missing; a certificate of type {self.type} needs it", key=key)
        return self


class LoadBalancer(Model):
    """A load balancer of a cloud in front of a gateway."""

    type: Literal["alb"] = Field(default="alb", description="The kind of load balancer; alb is the only one.")


class GatewayConfiguration(ConfigurationModel):
    """A reverse proxy with a public address in front of services."""

    places: ClassVar[Places] = Places(secrets=(("host", "ssh_key"), ("host", "proxy_jump", "ssh_key")))

    type: Literal["gateway"] = Field(default="gateway", description="The type of the configuration.")
    name: Name | None = Field(
        default=None,
        description="The name of the gateway; the file's name without .dstack.yml if it is not given.",
    )
    default: bool = Field(default=False, description="Whether services that name no gateway use this one.")
    backend: BackendName = Field(
        default="local", description="Where the gateway runs: local, ssh (with host) or aws (with region)."
    )
    region: Identifier | None = Field(default=None, description="The region of a gateway in a cloud.")
    instance_type: Identifier | None = Field(
        default=None, description="The instance type of a gateway in a cloud."
    )
    host: SshHost | None = Field(
        default=None, description="The host of an ssh gateway, its name or a mapping."
    )
    network: Network | None = Field(
        default=None, description="The private network by which the gateway reaches replicas directly."
    )
    port: Port | None = Field(
        default=None, description="The base port, on which services are published that ask for no other."
    )
    https_port: Port | None = Field(
        default=None,
        description="The port of HTTPS, for a gateway with a certificate; 443, or 8443 on this machine.",
    )
    domain: GatewayDomain | None = Field(
        default=None, description="The domain below which services get their names, such as example.com."
    )
    certificate: Certificate | None = Field(
        default_factory=lambda: Certificate(type="auto"),
        description="Where the certificate comes from; acme for a gateway with a domain, null for none.",
    )
    load_balancer: LoadBalancer | None = Field(
        default=None, description="The load balancer of a cloud in front of the gateway."
    )
    replicas: Positive = Field(default=1, description="The number of machines that the gateway runs on.")
    public_ip: bool = Field(default=True, description="Whether a gateway in a cloud gets a public address.")
    router: Router | None = Field(
        default=None, description="A router of requests among replicas that dstack runs."
    )
    tags: Tags | None = Field(default=None, description="Tags to put on what is created for this.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.backend == "ssh" and self.host is None:
            refuse("is missing; a gateway with 'backend: ssh' needs the host it runs on", key="host")
        if self.backend != "ssh" and self.host is not None:
            refuse("needs 'backend: ssh' beside it", key="host")
        certificate = self.effective_certificate
        if self.https_port is not None and certificate is None:
            refuse("needs a certificate; add 'domain: example.com', or a 'certificate'", key="https_port")
        if self.port is not None and self.port == self.effective_https_port:
            refuse(f"cannot be {self.port}, the port of HTTPS; give one of them another", key="port")
        if certificate is not None and certificate.type == "acme" and self.domain is None:
            refuse("is missing; a certificate of type acme is for a domain", key="domain")
        return self

    @property
    def effective_https_port(self) -> int | None:
        """The port of HTTPS as written, else 443, or 8443 on this machine; None without a certificate."""
        if self.effective_certificate is None:
            return None
        return self.https_port or (8443 if self.backend == "local" else 443)

    @property
    def effective_certificate(self) -> Certificate | None:
        """The certificate as written, else ACME for a gateway with a domain, else none."""
        if self.certificate is None or self.certificate.type != "auto":
            return self.certificate
        return Certificate(type="acme") if self.domain is not None else None
