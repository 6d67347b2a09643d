"""What a loaded configuration says: which keys were written, which secrets it needs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from prefect_dstack.configurations.base import ConfigurationModel
from prefect_dstack.configurations.interpolation import is_place, secrets_of, texts


def written_keys(configuration: ConfigurationModel) -> dict[str, Any]:
    """Return what was set, by the file, a profile or the caller, and what was not left to its default.

    Args:
        configuration: Any configuration.

    Returns:
        Values by dotted key, such as `port`, `resources.gpu.name` or `probes.0.url`, in the form of the file.
        A key that holds further keys is not itself among them, unless it is empty.
    """
    keys: dict[str, Any] = {}
    _collect(configuration, configuration.model_dump(mode="json", exclude_unset=True), "", keys)
    keys.pop("type", None)
    return keys


def _collect(value: Any, dumped: Any, key: str, keys: dict[str, Any]) -> None:
    if isinstance(value, BaseModel) and isinstance(dumped, dict) and dumped:
        for field in type(value).model_fields:
            if field in value.model_fields_set:
                _collect(getattr(value, field), dumped[field], f"{key}.{field}" if key else field, keys)
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        for index, item in enumerate(value):
            _collect(item, dumped[index], f"{key}.{index}", keys)
    else:
        keys[key] = dumped


def secret_names(configuration: ConfigurationModel) -> set[str]:
    """Return the names of all secrets that a configuration refers to."""
    dumped = configuration.model_dump(mode="json", exclude_unset=True)
    places = configuration.places.secrets
    return {name for path, text in texts(dumped) if is_place(path, places) for name in secrets_of(text)}
