"""The strict patterns of everything that reaches a command line, a URL, a label or a proxy configuration.

A value that passes here has no control characters and none of the characters with which it could leave
the place it is put in.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from prefect_dstack.configurations.base import refuse
from prefect_dstack.configurations.interpolation import check_with
from prefect_dstack.configurations.messages import show
from prefect_dstack.configurations.scalars import to_text

NAME_PATTERN = r"[a-z][a-z0-9-]{0,39}"
_NAME = re.compile(NAME_PATTERN)
_GROUP_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SSH_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_REQUEST_TARGET = re.compile(r"/[!-~]*")
_ROUTE_PREFIX = re.compile(r"(/[A-Za-z0-9._~%:@+,=-]+)*/?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,254}")
_TAG_NAME = re.compile(r"[A-Za-z0-9_.:/=+@-]{1,128}")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_.:/=+@ -]{0,256}")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/+-]{0,254}")
_EDITOR_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}(@[a-f0-9]{1,64})?")
_BACKEND = re.compile(r"[a-z][a-z0-9-]{0,39}")
_REFERENCE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,99}/)?[a-z0-9][a-z0-9-]{0,62}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?")
_LOGIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,63}")
_ASSET = re.compile(r"([a-z][a-z0-9]{0,30}://)?[A-Za-z0-9._/:@+,=~-]{1,480}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,254}")
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_WEB_ADDRESS = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[!-~]*)?")
_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]{0,30}://(\*|(\*\.)?[a-z0-9_-][a-z0-9._-]*|\[[0-9a-f:.]+\])(:([0-9]{1,5}|\*))?"
)
_DEPLOYMENT = re.compile(r"[^/%&<>?#]{1,200}/[^/%&<>?#]{1,200}")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")
_IMAGE = re.compile(
    r"(?P<registry>(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?:@[A-Za-z][A-Za-z0-9]*(?:[+._-][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,128})?"
)
HTTP_METHODS = ("get", "post", "put", "delete", "patch", "head", "options")


def parse_name(value: str) -> str:
    """Accept the name of a service, task, gateway, fleet or volume."""
    if not _NAME.fullmatch(value):
        refuse(
            "must be a lower-case letter followed by at most 39 lower-case letters, digits or hyphens, "
            f"not {show(value)}"
        )
    return value


def parse_group_name(value: str) -> str:
    """Accept the name of a group of replicas or nodes."""
    if not _GROUP_NAME.fullmatch(value):
        refuse(f"must be at most 40 lower-case letters, digits or hyphens, not {show(value)}")
    return value


def parse_domain(value: str) -> str:
    """Accept a host name as in RFC 1123, and return it in lower case without a final dot."""
    host = value.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not host.isascii() or not all(_LABEL.fullmatch(label) for label in labels):
        refuse(f"must be a host name such as api.example.com, not {show(value)}")
    if labels[-1].isdigit():
        refuse(f"must be a host name, not an address: {show(value)}")
    return host


def parse_gateway_domain(value: str) -> str:
    """Accept `example.com` or `*.example.com`, and return `example.com`."""
    return parse_domain(value.removeprefix("*."))


def parse_address(value: str) -> str:
    """Accept an IP address or a host name (underscores allowed, as SSH aliases have them)."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        host = value.lower().removesuffix(".")
    if len(host) > 253 or not host.isascii() or not all(_SSH_LABEL.fullmatch(p) for p in host.split(".")):
        refuse(f"must be a host name or an IP address, not {show(value)}")
    return host


def is_address(value: str) -> bool:
    """Return whether `parse_address` would accept the value."""
    try:
        parse_address(value)
    except ValueError:
        return False
    return True


def parse_private_address(value: str) -> str:
    """Accept an IP address of a private network."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        refuse(f"must be an IP address, not {show(value)}")
    if not address.is_private:
        refuse(f"must be an address of a private network, not {show(value)}")
    return str(address)


def parse_network(value: str) -> str:
    """Accept a private network such as `10.0.0.0/24`."""
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        refuse(f"must be a network such as 10.0.0.0/24, not {show(value)}")
    if not network.is_private:
        refuse(f"must be a private network, not {show(value)}")
    return str(network)


def parse_request_target(value: str) -> str:
    """Accept a path, perhaps with a query, that may stand in a request line."""
    if len(value) > 2048 or not _REQUEST_TARGET.fullmatch(value):
        refuse(f"must be a path of printable ASCII that starts with '/' and has no spaces, not {show(value)}")
    return value


def parse_route_prefix(value: str) -> str:
    """Accept a path prefix by which requests are chosen."""
    segments = value.lower().replace("%2e", ".").split("/")
    if (
        len(value) > 1024
        or not value.startswith("/")
        or not _ROUTE_PREFIX.fullmatch(value)
        or ".." in segments
        or "." in segments
    ):
        refuse(f"must be a path such as /api of letters, digits and ._~%:@+,=-, not {show(value)}")
    return value


def parse_path_prefix(value: str) -> str:
    """Accept a route prefix and return it without its final slash (`/` stays)."""
    return parse_route_prefix(value).rstrip("/") or "/"


def parse_header_name(value: str) -> str:
    """Accept the name of an HTTP header (a token of RFC 9110)."""
    if not _HEADER_NAME.fullmatch(value):
        refuse(f"must be the name of an HTTP header, letters, digits and hyphens, not {show(value)}")
    return value


def parse_header_value(value: str) -> str:
    """Accept the value of an HTTP header, without control characters."""
    stripped = value.strip(" ")
    if len(stripped) > 2048 or not stripped.isascii() or not stripped.isprintable():
        refuse("must be at most 2048 printable ASCII characters on one line")
    return stripped


def parse_http_method(value: str) -> str:
    """Accept an HTTP method in any case, and return it in lower case."""
    method = value.lower()
    if method not in HTTP_METHODS:
        refuse(f"must be one of {', '.join(HTTP_METHODS)}, not {show(value)}")
    return method


def parse_environment_name(value: str) -> str:
    """Accept the name of an environment variable."""
    if not _ENVIRONMENT_NAME.fullmatch(value):
        refuse(
            "the name of an environment variable has letters, digits, underscores and dots, no digit first, "
            f"not {show(value)}"
        )
    return value


def parse_tag_name(value: str) -> str:
    """Accept the name of a tag; those that mark what we created are refused."""
    if not _TAG_NAME.fullmatch(value):
        refuse(f"a tag's name has 1 to 128 letters, digits and _.:/=+@-, not {show(value)}")
    if value.lower().startswith(("prefect-dstack", "aws:")):
        refuse(f"the tag {show(value)} is reserved; choose another name")
    return value


def parse_tag_value(value: str) -> str:
    """Accept the value of a tag."""
    if not _TAG_VALUE.fullmatch(value):
        refuse(f"a tag's value has at most 256 letters, digits, spaces and _.:/=+@-, not {show(value)}")
    return value


def parse_image(value: str) -> str:
    """Accept a container image reference, such as `ghcr.io/acme/model:1.2`."""
    if len(value) > 512 or not _IMAGE.fullmatch(value):
        refuse(f"must be an image such as ghcr.io/acme/model:1.2, in lower case, not {show(value)}")
    return value


def parse_container_path(value: str) -> str:
    """Accept an absolute path on an instance or in a container."""
    path = parse_path(value)
    if not path.startswith("/") or ":" in path:
        refuse(f"must be an absolute path without a colon, not {show(value)}")
    if ".." in PurePosixPath(path).parts:
        refuse(f"must not have '..' in it: {show(value)}")
    return str(PurePosixPath(path))


def parse_instance_path(value: str) -> str:
    """Accept an absolute path on an instance, or one that begins with the home directory, `~/`."""
    if value == "~" or value.startswith("~/"):
        return "~" + parse_container_path(value[1:] or "/").rstrip("/")
    return parse_container_path(value)


def parse_path(value: str) -> str:
    """Accept a path without control characters."""
    if not value or len(value) > 4096 or not value.isprintable():
        refuse(f"must be a path without control characters, not {show(value)}")
    return value


def parse_line(value: str) -> str:
    """Accept one line of printable text."""
    if not value or len(value) > 255 or not value.isprintable():
        refuse(f"must be one line of text, not {show(value)}")
    return value


def parse_shell(value: str) -> str:
    """Accept `sh`, `bash` or the absolute path of a shell."""
    if value in ("sh", "bash"):
        return value
    if not value.startswith("/"):
        refuse(f"must be sh, bash or an absolute path, not {show(value)}")
    return parse_container_path(value)


def parse_unix_user(value: str) -> str:
    """Accept `user` or `user:group`, names or numbers."""
    if not _USER.fullmatch(value):
        refuse(f"must be a user such as ubuntu or 1000:1000, not {show(value)}")
    return value


def parse_login(value: str) -> str:
    """Accept the user name of an SSH login."""
    if not _LOGIN.fullmatch(value):
        refuse(f"must be a user name, not {show(value)}")
    return value


def parse_identifier(value: str) -> str:
    """Accept the name of something that a cloud defines: a region, an instance type, a reservation."""
    if not _IDENTIFIER.fullmatch(value):
        refuse(f"must be a name of letters, digits, spaces and ._:/+-, not {show(value)}")
    return value


def parse_editor_version(value: str) -> str:
    """Accept a version, or for windsurf a version and a commit."""
    if not _EDITOR_VERSION.fullmatch(value):
        refuse(f"must be a version such as 1.101.0, or 1.101.0@0123abc for windsurf, not {show(value)}")
    return value


def parse_backend_name(value: str) -> str:
    """Accept the name of a backend."""
    if not _BACKEND.fullmatch(value):
        refuse(f"must be the name of a backend such as local, ssh or aws, not {show(value)}")
    return value


def parse_model_name(value: str) -> str:
    """Accept the name of a served model."""
    if not _MODEL_NAME.fullmatch(value):
        refuse(f"must be the name of a model such as google/gemma-3-270m, not {show(value)}")
    return value


def parse_email(value: str) -> str:
    """Accept an e-mail address."""
    if len(value) > 254 or not _EMAIL.fullmatch(value):
        refuse(f"must be an e-mail address, not {show(value)}")
    return value


def parse_web_address(value: str) -> str:
    """Accept an http or https URL."""
    if len(value) > 2048 or not _WEB_ADDRESS.fullmatch(value):
        refuse(f"must be a URL such as https://acme.example.com/directory, not {show(value)}")
    return value


def parse_origin(value: str) -> str:
    """Accept an origin of CORS, and return it as browsers write it.

    `*`, `https://app.example.com`, `https://*.example.com`, `http://localhost:*` or `chrome-extension://*`.
    """
    origin = value.lower()
    if origin != "*" and (len(origin) > 260 or not _ORIGIN.fullmatch(origin)):
        refuse(f"must be '*' or an origin such as https://app.example.com, not {show(value)}")
    # Browsers never name the usual port.
    scheme = origin.partition("://")[0]
    return origin.removesuffix(":80" if scheme == "http" else ":443" if scheme == "https" else "")


def parse_fingerprint(value: str) -> str:
    """Accept the SHA-256 fingerprint of a host key as `ssh-keygen -lf` prints it."""
    if not _FINGERPRINT.fullmatch(value):
        refuse(f"must be a fingerprint such as ssh-keygen -lf prints it, SHA256:…, not {show(value)}")
    return value.rstrip("=")


def parse_deployment(value: str) -> str:
    """Accept the full name of a Prefect deployment: its flow's and its own."""
    if not _DEPLOYMENT.fullmatch(value) or not value.isprintable():
        refuse(f"must be a Prefect deployment as flow-name/deployment-name, not {show(value)}")
    return value


def parse_reference(value: Any) -> Any:
    """Accept `name`, `project/name` or a mapping of the two, and return text."""
    if isinstance(value, dict) and value.keys() <= {"project", "name"} and "name" in value:
        project, name = value.get("project"), value["name"]
        return f"{project}/{name}" if project else name
    return to_text(value)


def parse_model_asset(value: str) -> str:
    """Accept where a model is: a URI, or the path of a file or directory."""
    if not _ASSET.fullmatch(value) or value.endswith("://"):
        refuse(
            "must be a URI such as s3://bucket/model.onnx, or a path without blanks and other special "
            f"characters, not {show(value)}"
        )
    return value


def check_reference(value: str) -> str:
    """Accept `name` or `project/name`."""
    if not _REFERENCE.fullmatch(value):
        refuse(f"must be a name of lower-case letters, digits and hyphens, not {show(value)}")
    return value


Text = Annotated[str, BeforeValidator(to_text, json_schema_input_type=str | int | float | bool)]
"""Text; a number or a truth value in YAML is taken as it was typed."""

Line = Annotated[str, AfterValidator(parse_line)]
Name = Annotated[str, AfterValidator(parse_name)]
VolumeName = Annotated[str, AfterValidator(check_with(parse_name, "0"))]
GroupName = Annotated[Text, AfterValidator(parse_group_name)]
Domain = Annotated[str, AfterValidator(parse_domain)]
GatewayDomain = Annotated[str, AfterValidator(parse_gateway_domain)]
Address = Annotated[str, AfterValidator(parse_address)]
PrivateAddress = Annotated[str, AfterValidator(parse_private_address)]
Network = Annotated[str, AfterValidator(parse_network)]
RequestTarget = Annotated[str, AfterValidator(check_with(parse_request_target, "x"))]
RoutePrefix = Annotated[str, AfterValidator(parse_route_prefix)]
PathPrefix = Annotated[str, AfterValidator(parse_path_prefix)]
HeaderName = Annotated[str, AfterValidator(parse_header_name)]
HeaderValue = Annotated[Text, AfterValidator(check_with(parse_header_value, "x"))]
HttpMethod = Annotated[str, AfterValidator(parse_http_method)]
EnvironmentName = Annotated[str, AfterValidator(parse_environment_name)]
TagName = Annotated[str, AfterValidator(parse_tag_name)]
TagValue = Annotated[Text, AfterValidator(parse_tag_value)]
Tags = dict[TagName, TagValue]
Image = Annotated[str, AfterValidator(parse_image)]
ContainerPath = Annotated[str, AfterValidator(parse_container_path)]
InstancePath = Annotated[str, AfterValidator(check_with(parse_instance_path, "0"))]
LocalPath = Annotated[str, AfterValidator(parse_path)]
Shell = Annotated[str, AfterValidator(parse_shell)]
UnixUser = Annotated[Text, AfterValidator(parse_unix_user)]
Login = Annotated[Text, AfterValidator(parse_login)]
Identifier = Annotated[Text, AfterValidator(parse_identifier)]
EditorVersion = Annotated[Text, AfterValidator(parse_editor_version)]
BackendName = Annotated[str, AfterValidator(parse_backend_name)]
ModelAsset = Annotated[str, AfterValidator(check_with(parse_model_asset, "x"))]
ModelName = Annotated[str, AfterValidator(parse_model_name)]
Email = Annotated[str, AfterValidator(parse_email)]
WebAddress = Annotated[str, AfterValidator(parse_web_address)]
Origin = Annotated[str, AfterValidator(parse_origin)]
Fingerprint = Annotated[str, AfterValidator(parse_fingerprint)]
DeploymentName = Annotated[str, AfterValidator(parse_deployment)]
Reference = Annotated[
    str,
    BeforeValidator(parse_reference, json_schema_input_type=str | dict[str, str]),
    AfterValidator(check_reference),
]
