"""`type: service`."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.environment import check_references
from prefect_dstack.configurations.interpolation import Places, secrets_of
from prefect_dstack.configurations.messages import show
from prefect_dstack.configurations.names import (
    Domain,
    GroupName,
    Identifier,
    Image,
    ModelAsset,
    ModelName,
    PathPrefix,
    Text,
    is_address,
    parse_reference,
)
from prefect_dstack.configurations.ports import ServicePort
from prefect_dstack.configurations.profile import SpotPolicy
from prefect_dstack.configurations.resources import Resources
from prefect_dstack.configurations.rollout import Rollout, Scaling
from prefect_dstack.configurations.run import (
    PRIVATE_PLACES,
    Commands,
    NodeCommands,
    PythonVersion,
    RunConfiguration,
    check_addresses,
    check_image_source,
    check_something_to_run,
)
from prefect_dstack.configurations.scalars import Bytes, CountRange, Duration, Number, Positive
from prefect_dstack.configurations.traffic import Auth, Cors, Probe, RateLimit, Timeouts, parse_truth


class Router(Model):
    """A router of requests among replicas that dstack runs."""

    type: Literal["smg", "sglang", "vllm", "dynamo"] = Field(
        default="sglang", description="The implementation of the router: smg (or sglang), vllm or dynamo."
    )
    policy: Literal["random", "round_robin", "cache_aware", "power_of_two"] | None = Field(
        default=None, description="How the router chooses a replica."
    )
    pd_disaggregation: bool | None = Field(
        default=None, description="Whether prefill and decode run on different replicas."
    )


def _closed(value: CountRange) -> CountRange:
    if value.max is None:
        refuse(f"must have a greatest number, such as {value.min}..{(value.min or 0) + 2}, not {value}")
    if value.max < 1:
        refuse("must allow at least one replica; stop the service instead")
    return CountRange(min=value.min or 0, max=value.max)


ReplicaRange = Annotated[CountRange, AfterValidator(_closed)]


def _check_scaling(count: CountRange, scaling: Scaling | None, key: str) -> None:
    if not count.fixed and scaling is None:
        refuse(f"is a range, so add 'scaling' to say when to use how many of {count}", key=key)
    if count.fixed and scaling is not None:
        refuse(f"needs a range such as '{key}: 1..4'", key="scaling")


class ReplicaGroup(Model):
    """Replicas that run something of their own."""

    name: GroupName | None = Field(
        default=None, description="The name of the group; its position if not given."
    )
    replicas: ReplicaRange | None = Field(
        default=None, description="The number of replicas, or a range of it."
    )
    count: ReplicaRange | None = Field(default=None, description="The older name of replicas.")
    scaling: Scaling | None = Field(default=None, description="When replicas are added and removed.")
    resources: Resources = Field(default_factory=Resources, description="What a replica needs of a machine.")
    spot_policy: SpotPolicy | None = Field(
        default=None, description="Whether machines may be spot instances: spot, on-demand or auto."
    )
    reservation: Identifier | None = Field(
        default=None, description="The reservation of capacity to take machines from."
    )
    commands: NodeCommands = Field(default=(), description="The shell commands to run.")
    image: Image | None = Field(default=None, description="The container image to run.")
    python: PythonVersion | None = Field(default=None, description="The version of Python to run with.")
    nvcc: bool | None = Field(default=None, description="Whether the NVIDIA CUDA compiler must be there.")
    docker: bool | None = Field(
        default=None, description="Whether Docker must be usable inside the container."
    )
    privileged: bool | None = Field(default=None, description="Whether the containers run privileged.")
    router: Router | None = Field(default=None, description="The router that the replicas of this group run.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_image_source(self, " in a replica group")
        if self.docker and self.privileged is False:
            refuse("cannot be false beside 'docker: true'", key="privileged")
        if self.replicas is not None and self.count is not None:
            refuse("is the older name of 'replicas', which is there too; remove it", key="count")
        if self.replicas is None and self.count is None:
            refuse("is missing; add 'replicas: 1'", key="replicas")
        _check_scaling(self.range, self.scaling, "count" if self.replicas is None else "replicas")
        return self

    @property
    def range(self) -> CountRange:
        """How many replicas there may be in the group."""
        return self.replicas or self.count or CountRange(min=1, max=1)


def _check_beside_service(service: Any, group: ReplicaGroup, place: str) -> None:
    """Refuse what a group says beside the whole service, if only one of them can count."""
    for key in ("image", "python", "nvcc", "docker", "privileged", "spot_policy", "reservation"):
        if getattr(service, key) and getattr(group, key) is not None:
            refuse("is also given for the whole service; keep one of them", key=f"{place}.{key}")
    sources = ("image", "python", "nvcc", "docker")
    for key, other in itertools.product(sources, sources):
        if getattr(group, key) and getattr(service, other) and {key, other} != {"python", "nvcc"}:
            refuse(
                f"cannot stand beside '{other}' of the whole service; keep one of them", key=f"{place}.{key}"
            )


def _kind_of_replicas(value: Any) -> str:
    return "groups" if isinstance(value, (list, tuple)) else "range"


Replicas = Annotated[
    Annotated[ReplicaRange, Tag("range")]
    | Annotated[tuple[ReplicaGroup, ...], Field(min_length=1), Tag("groups")],
    Discriminator(_kind_of_replicas),
]


class ServedModel(Model):
    """The model that a service serves with an OpenAI-compatible API, written as its name or a mapping."""

    shorthand = ("string",)

    name: ModelName = Field(description="The name of the model, as clients send it.")
    type: Literal["chat"] = Field(default="chat", description="What the model is for.")
    format: Literal["openai", "tgi"] = Field(
        default="openai", description="The API that the application speaks."
    )
    prefix: PathPrefix = Field(default="/v1", description="The path prefix of the API.")
    chat_template: Text | None = Field(default=None, description="The template of prompts, for format tgi.")
    eos_token: Text | None = Field(default=None, description="The token that ends an answer, for format tgi.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in ("chat_template", "eos_token"):
            if getattr(self, key) is not None and self.format != "tgi":
                refuse("is for 'format: tgi' only", key=key)
        return self


def parse_gateway(value: Any) -> Any:
    """Accept true, false, the name or address of a gateway, or a reference to a secret that holds it."""
    truth = parse_truth(parse_reference(value) if isinstance(value, dict) else value)
    if truth is None or isinstance(truth, bool):
        return truth
    if not isinstance(truth, str):
        refuse(f"must be true, false, or the name or address of a gateway, not {show(value)}")
    check_references(truth)
    return truth if secrets_of(truth) else check_gateway(truth)


def check_gateway(value: str) -> str:
    """Accept the name (`main`, `project/main`) or address of a gateway."""
    project, _, name = value.rpartition("/")
    if not is_address(name) or (project and not is_address(project)):
        refuse(f"must be true, false, or the name or address of a gateway, not {show(value)}")
    return value


def parse_https(value: Any) -> Any:
    """Accept true, false or auto."""
    truth = parse_truth(value)
    if truth not in (True, False, None, "auto") or (
        isinstance(truth, (int, float)) and not isinstance(truth, bool)
    ):
        refuse(f"must be true, false or auto, not {show(value)}")
    return truth


PROBE_PLACES = (
    ("probes", "*", "url"),
    ("probes", "*", "body"),
    ("probes", "*", "headers", "*"),
    ("probes", "*", "headers", "*", "value"),
)


class ServiceConfiguration(RunConfiguration):
    """A web application that runs as replicas behind a gateway.

    Example:
        >>> ServiceConfiguration(port=8000, commands=["python -m http.server 8000"]).port.port
        8000
    """

    places: ClassVar[Places] = Places(
        secrets=(*PRIVATE_PLACES, *PROBE_PLACES, ("gateway",)),
        environment=(*PRIVATE_PLACES, *PROBE_PLACES),
        nodes=(
            *RunConfiguration.places.nodes,
            ("groups", "*", "commands", "*"),
            ("replicas", "*", "commands", "*"),
        ),
    )

    type: Literal["service"] = Field(default="service", description="The type of the configuration.")
    port: ServicePort = Field(
        description="The port that the application listens on, or '<gateway port>:<port>'."
    )
    commands: Commands = Field(
        default=(), description="The shell commands to run; the image's own if not given."
    )
    gateway: Annotated[
        bool | str | None, BeforeValidator(parse_gateway, json_schema_input_type=bool | str | None)
    ] = Field(
        default=None,
        description="The name or address of the gateway, true for the default one, false for none.",
    )
    replicas: Replicas | None = Field(
        default=None,
        description="The number of replicas, or a range such as 1..4; one if not given. A list is the older "
        "form of groups.",
    )
    groups: tuple[ReplicaGroup, ...] | None = Field(
        default=None,
        min_length=1,
        description="Groups of replicas that run something of their own, instead of replicas.",
    )
    scaling: Scaling | None = Field(
        default=None, description="When replicas are added and removed, for a range."
    )
    probes: tuple[Probe, ...] | None = Field(
        default=None,
        max_length=16,
        description="The checks that a replica must pass; that its port answers if not given.",
    )
    restart_after: Annotated[Duration, Field(ge=1)] | None = Field(
        default=None,
        description="How long a replica may fail its http probe before it is replaced; if not given, it only "
        "gets no requests.",
    )
    auth: Auth | None = Field(
        default=None, description="Whether requests need a token; the gateway decides if it is not given."
    )
    https: Annotated[bool | Literal["auto"] | None, BeforeValidator(parse_https)] = Field(
        default=None,
        description="Whether requests must come by HTTPS; auto, or nothing, lets the gateway decide.",
    )
    model: ServedModel | None = Field(
        default=None, description="The model behind an OpenAI-compatible API, its name or a mapping."
    )
    model_asset: ModelAsset | None = Field(
        default=None,
        description="The model that the replicas load: a path, `s3://bucket/key`, or another URI. New "
        "content takes new replicas, and the service is an asset that depends on it.",
    )
    domain: Domain | None = Field(
        default=None, description="The host name of the service, instead of the gateway's choice."
    )
    domains: tuple[Domain, ...] = Field(
        default=(),
        max_length=64,
        description="Further host names of the service, beside `domain` or the gateway's choice.",
    )
    path_prefix: PathPrefix = Field(default="/", description="The path below which the service is published.")
    strip_prefix: bool = Field(
        default=True, description="Whether the path prefix is removed before the application sees it."
    )
    rate_limits: tuple[RateLimit, ...] = Field(
        default=(), max_length=64, description="Limits on the requests of each client."
    )
    cors: Cors | None = Field(
        default=None, description="Which web pages of other origins may call the service."
    )
    client_max_body_size: Bytes = Field(
        default=64 * 2**20, description="The largest body of a request, such as 64MB."
    )
    timeouts: Timeouts = Field(default_factory=Timeouts, description="How long the gateway waits.")
    max_concurrency: Positive | None = Field(
        default=None, description="How many requests a replica gets at once; the rest wait at the gateway."
    )
    queue_timeout: Duration | None = Field(
        default=None, description="How long a request may wait at the gateway for a replica."
    )
    access_log: bool = Field(
        default=False,
        description="Whether the gateway writes a line of JSON for each request, without query and headers; "
        "`logs NAME --requests` prints them.",
    )
    budget: Annotated[Number, Field(gt=0)] | None = Field(
        default=None,
        description="What the machines of the service may cost together, in US dollars an hour; more is "
        "reported, not refused.",
    )
    rollout: Rollout = Field(
        default_factory=Rollout, description="How a new revision takes over from the old one."
    )
    retain: Positive = Field(default=10, description="How many revisions are kept to go back to.")
    router: Router | None = Field(
        default=None, description="A router of requests among replicas that dstack runs."
    )

    @field_validator("rate_limits")
    @classmethod
    def _distinct_prefixes(cls, limits: tuple[RateLimit, ...]) -> tuple[RateLimit, ...]:
        prefix, times = Counter(limit.prefix for limit in limits).most_common(1)[0] if limits else ("", 0)
        if times > 1:
            refuse(f"has the prefix {show(prefix)} {times} times; keep one of them")
        return limits

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_image_source(self)
        if self.groups is not None and self.replicas is not None:
            refuse("cannot stand beside 'groups'; say how many in each group", key="replicas")
        if self.replica_groups:
            self._check_groups(self.replica_groups, "replicas" if self.groups is None else "groups")
        else:
            check_something_to_run(self)
            _check_scaling(self.replica_range, self.scaling, "replicas")
        if self.restart_after is not None and self.repeated_probe is None:
            refuse(
                "needs a probe that goes on once a replica is ready; add 'probes: [{url: /health}]'",
                key="restart_after",
            )
        return self

    @property
    def repeated_probe(self) -> Probe | None:
        """The probe that the gateway asks for as long as a replica serves; None: only the port is checked."""
        for probe in self.probes or ():
            if probe.type == "http" and not probe.until_ready:
                return probe
        return None

    def _check_groups(self, groups: tuple[ReplicaGroup, ...], key_of_groups: str) -> None:
        for key in ("scaling", "commands"):
            if getattr(self, key):
                refuse("belongs in each group while there are groups of replicas", key=key)
        name, times = Counter(self.group_names).most_common(1)[0]
        if times > 1:
            refuse(f"has {times} groups with the name {show(name)}", key=key_of_groups)
        sizes = [group.range.min or 0 for group in groups]
        for index, group in enumerate(groups):
            place = f"{key_of_groups}.{index}"
            check_addresses(group.commands, "replicas", sizes, f"{place}.commands")
            if not group.commands and group.image is None and self.image is None:
                refuse("is missing; say what the group runs", key=f"{place}.commands")
            _check_beside_service(self, group, place)
        routers = [index for index, group in enumerate(groups) if group.router is not None]
        if len(routers) > 1:
            refuse("is given for another group too; keep one", key=f"{key_of_groups}.{routers[1]}.router")

    @property
    def replica_groups(self) -> tuple[ReplicaGroup, ...]:
        """The groups of replicas, under whichever key they are written; empty without groups."""
        if self.groups is not None:
            return self.groups
        return self.replicas if isinstance(self.replicas, tuple) else ()

    @property
    def replica_range(self) -> CountRange:
        """How many replicas there may be, in all groups together; 1 if nothing is said."""
        if self.replica_groups:
            counts = [group.range for group in self.replica_groups]
            return CountRange(
                min=sum(count.min or 0 for count in counts), max=sum(count.max or 0 for count in counts)
            )
        return self.replicas if isinstance(self.replicas, CountRange) else CountRange(min=1, max=1)

    @property
    def replica_count(self) -> int:
        """How many replicas to start with: the fixed number, or the least of the range."""
        return self.replica_range.min or 0

    @property
    def needs_controller(self) -> bool:
        """Whether it does all that it says only while a controller watches."""
        parts: tuple[ServiceConfiguration | ReplicaGroup, ...] = (self, *self.replica_groups)
        if any(part.scaling is not None or part.spot_policy in ("spot", "auto") for part in parts):
            return True
        return self.restart_after is not None

    @property
    def group_names(self) -> list[str]:
        """The names of the replica groups, their positions where none is given; empty without groups."""
        return [group.name or str(index) for index, group in enumerate(self.replica_groups)]

    def host_names(self, gateway_domain: str | None) -> tuple[str, ...]:
        """List the names at which the service answers.

        Args:
            gateway_domain: The domain of its gateway.

        Returns:
            `domain`, or the name that the gateway gives it, and `domains`; each once.
        """
        given = f"{self.name}.{gateway_domain}" if gateway_domain else None
        first = self.domain or given
        return tuple(dict.fromkeys([*([first] if first else []), *self.domains]))
