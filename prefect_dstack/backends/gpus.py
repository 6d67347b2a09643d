"""The GPUs of a machine: what their driver says of them, and what is known of their models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.backends.base import Accelerator

__all__ = [
    "GPU_SURVEY",
    "GPU_USE",
    "GpuDevice",
    "compute_capability",
    "data_sheet_gb",
    "grouped",
    "is_model",
    "picked",
    "read_gpus",
    "read_use",
]

# `nvidia-smi` may be there without a working driver, and older ones refuse to be asked for compute_cap.
GPU_SURVEY = r"""
ask_driver() { nvidia-smi --query-gpu="uuid,name,memory.total$1" --format=csv,noheader,nounits 2>&1; }
if command -v nvidia-smi >/dev/null 2>&1; then
    if gpus=$(ask_driver ,compute_cap) || gpus=$(ask_driver); then
        echo "$gpus" | sed 's/^/gpu /'
    else
        echo "broken $(echo "$gpus" | head -n 1)"
    fi
fi
"""


GPU_USE = "nvidia-smi --query-gpu=uuid,utilization.gpu --format=csv,noheader,nounits"


class GpuDevice(BaseModel):
    """One accelerator of a machine."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="The driver's name for it, which a reboot does not change.")
    name: str = Field(description="The model.")
    memory_gb: float = Field(description="Its memory in GB.")
    compute_capability: tuple[int, int] | None = Field(
        default=None, description="What its CUDA cores can do; None: the driver does not say."
    )

    @property
    def kind(self) -> Accelerator:
        """One accelerator of its kind."""
        return Accelerator(
            name=self.name, memory_gb=self.memory_gb, compute_capability=self.compute_capability
        )


class _Model(NamedTuple):
    capability: tuple[int, int]
    # On the data sheet, where the driver says less: error correction takes a part of GDDR memory.
    memory_gb: int | None = None


_MODELS = {
    "A2": _Model((8, 6), 16),
    "A10": _Model((8, 6), 24),
    "A10G": _Model((8, 6), 24),
    "A16": _Model((8, 6), 16),
    "A30": _Model((8, 0)),
    "A40": _Model((8, 6), 48),
    "A100": _Model((8, 0)),
    "B200": _Model((10, 0), 180),
    "B300": _Model((10, 3)),
    "H100": _Model((9, 0)),
    "H200": _Model((9, 0)),
    "L4": _Model((8, 9), 24),
    "L40": _Model((8, 9), 48),
    "L40S": _Model((8, 9), 48),
    "P100": _Model((6, 0)),
    "RTX A6000": _Model((8, 6), 48),
    "RTX PRO 4500": _Model((12, 0)),
    "RTX PRO 6000": _Model((12, 0)),
    "T4": _Model((7, 5), 16),
    "T4g": _Model((7, 5), 16),
    "V100": _Model((7, 0)),
}
# The driver says at least so much of the data sheet's memory; a part of a GPU says less.
_LEAST_OF_DATA_SHEET = 0.9
# Words after the name of a model that make it another one.
_OTHER_MODEL = frozenset({"ada", "d", "super", "ti"})


def is_model(asked: str, name: str) -> bool:
    """Return whether a GPU is of a model: `RTX4090` is one way to write `NVIDIA GeForce RTX 4090`.

    Args:
        asked: The model, as people write it.
        name: What the driver or a cloud calls the GPU.
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    sought = "".join(re.findall(r"[a-z0-9]+", asked.lower()))
    return any(
        "".join(words[first:last]) == sought and not _OTHER_MODEL.intersection(words[last : last + 1])
        for first in range(len(words))
        for last in range(first + 1, len(words) + 1)
    )


def data_sheet_gb(name: str, memory_gb: float) -> float:
    """Return the memory of a GPU as people and data sheets call it: 24 GB of an L4 that says 22.5.

    Args:
        name: What the driver or a cloud calls the GPU.
        memory_gb: What it says of its memory.
    """
    known = _model(name)
    if known is None or known.memory_gb is None or memory_gb < known.memory_gb * _LEAST_OF_DATA_SHEET:
        return memory_gb
    return max(memory_gb, known.memory_gb)


def compute_capability(gpu: Accelerator) -> tuple[int, int] | None:
    """Return the compute capability of a GPU: its driver's word, else that of its model; None: unknown."""
    if gpu.compute_capability is not None:
        return gpu.compute_capability
    known = _model(gpu.name)
    return None if known is None else known.capability


def _model(name: str) -> _Model | None:
    return next((model for model_name, model in _MODELS.items() if is_model(model_name, name)), None)


def read_use(rows: Iterable[str]) -> dict[str, int]:
    """Read how much the GPUs of a machine are used.

    Args:
        rows: One for each GPU, of its id and the percentage of the last moments in which it worked.

    Returns:
        The percentages by id; of a GPU whose driver does not say, nothing.
    """
    cells = (row.rpartition(",") for row in rows)
    return {device.strip(): int(used) for device, _, used in cells if used.strip().isdecimal()}


def read_gpus(rows: Iterable[str], memory_gb: float) -> tuple[GpuDevice, ...]:
    """Read what the driver says.

    Args:
        rows: One for each GPU, of its id, name, memory in MiB and compute capability, if it is known.
        memory_gb: The machine's memory, which a GPU without memory of its own uses.

    Returns:
        The GPUs; a row that is none, such as `No devices were found`, is left out.
    """
    found = []
    for row in rows:
        cells = [cell.strip() for cell in row.split(",")]
        if len(cells) < 3:
            continue
        identifier, name, memory, *rest = cells
        found.append(
            GpuDevice(
                id=identifier,
                name=name.removeprefix("NVIDIA "),
                memory_gb=int(memory) / 1024 if memory.isdecimal() else memory_gb,
                compute_capability=_capability(rest[0]) if rest else None,
            )
        )
    return tuple(found)


def _capability(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None


def grouped(devices: Sequence[GpuDevice]) -> tuple[Accelerator, ...]:
    """Count GPUs of one kind together."""
    kinds = [device.kind for device in devices]
    return tuple(kind.model_copy(update={"count": kinds.count(kind)}) for kind in dict.fromkeys(kinds))


def picked(devices: Sequence[GpuDevice], given: Sequence[Accelerator]) -> tuple[GpuDevice, ...]:
    """Return the first devices of each kind, as many of it as are given."""
    return tuple(
        device
        for gpu in given
        for device in [one for one in devices if one.kind == gpu.model_copy(update={"count": 1})][: gpu.count]
    )
