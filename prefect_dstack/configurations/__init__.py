"""What the user writes: models, YAML, interpolation, profiles and their JSON Schema.

Nothing here knows Prefect, and nothing does any input or output but reading files.
"""

from __future__ import annotations

from prefect_dstack.configurations.base import ConfigurationModel
from prefect_dstack.configurations.dev_environment import DevEnvironmentConfiguration
from prefect_dstack.configurations.environment import (
    Environment,
    RegistryAuth,
    RegistryCredentials,
)
from prefect_dstack.configurations.fleet import FleetConfiguration, FleetNodes
from prefect_dstack.configurations.gateway import Certificate, GatewayConfiguration
from prefect_dstack.configurations.interpolation import resolve_text
from prefect_dstack.configurations.loading import Configuration, load_configuration, relocated
from prefect_dstack.configurations.mounts import FileMapping, InstanceMount, Repository, VolumeMount
from prefect_dstack.configurations.ports import PortMapping, ServicePort
from prefect_dstack.configurations.profile import Profile, Retry, Schedule, UtilizationPolicy
from prefect_dstack.configurations.profile_files import load_profiles
from prefect_dstack.configurations.records import secret_names, written_keys
from prefect_dstack.configurations.resolving import (
    NodeFacts,
    RemoteRepository,
    awaited_addresses,
    deployer_variables,
    group_key,
    node_references,
    private_references,
    resolve_commands,
    resolve_environment,
    resolve_gateway,
    resolve_mounts,
    resolve_probes,
    resolve_registry_auth,
    resolve_repository,
)
from prefect_dstack.configurations.resources import Cpu, Disk, Gpu, Resources
from prefect_dstack.configurations.rollout import Canary, Rollout, Scaling
from prefect_dstack.configurations.run import RunConfiguration
from prefect_dstack.configurations.scalars import (
    CountRange,
    Range,
    SizeRange,
    amount_of,
    format_duration,
    format_memory,
    parse_duration,
)
from prefect_dstack.configurations.schema import configuration_schema
from prefect_dstack.configurations.service import ReplicaGroup, Router, ServedModel, ServiceConfiguration
from prefect_dstack.configurations.ssh import SshConfig, SshHost, SshProxy
from prefect_dstack.configurations.task import NodeGroup, TaskConfiguration
from prefect_dstack.configurations.traffic import Auth, Cors, Header, Probe, RateLimit, RateLimitKey, Timeouts
from prefect_dstack.configurations.volume import VolumeConfiguration

__all__ = [
    "Auth",
    "Canary",
    "Certificate",
    "Configuration",
    "ConfigurationModel",
    "Cors",
    "CountRange",
    "Cpu",
    "DevEnvironmentConfiguration",
    "Disk",
    "Environment",
    "FileMapping",
    "FleetConfiguration",
    "FleetNodes",
    "GatewayConfiguration",
    "Gpu",
    "Header",
    "InstanceMount",
    "NodeFacts",
    "NodeGroup",
    "PortMapping",
    "Probe",
    "Profile",
    "Range",
    "RateLimit",
    "RateLimitKey",
    "RegistryAuth",
    "RegistryCredentials",
    "RemoteRepository",
    "ReplicaGroup",
    "Repository",
    "Resources",
    "Retry",
    "Rollout",
    "Router",
    "RunConfiguration",
    "Scaling",
    "Schedule",
    "ServedModel",
    "ServiceConfiguration",
    "ServicePort",
    "SizeRange",
    "SshConfig",
    "SshHost",
    "SshProxy",
    "TaskConfiguration",
    "Timeouts",
    "UtilizationPolicy",
    "VolumeConfiguration",
    "VolumeMount",
    "amount_of",
    "awaited_addresses",
    "configuration_schema",
    "deployer_variables",
    "format_duration",
    "format_memory",
    "group_key",
    "load_configuration",
    "load_profiles",
    "node_references",
    "parse_duration",
    "private_references",
    "relocated",
    "resolve_commands",
    "resolve_environment",
    "resolve_gateway",
    "resolve_mounts",
    "resolve_probes",
    "resolve_registry_auth",
    "resolve_repository",
    "resolve_text",
    "secret_names",
    "written_keys",
]
