"""What a Hugging Face config.json says of a decoder-only transformer, in one vocabulary for all families."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol

from megatron_rl.actor import models
from megatron_rl.reshard.layout import ModelShape
from megatron_rl.spec.schema import SpecError

HfConfig = Mapping[str, object]
"""A parsed config.json."""


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions: the base, and how it is stretched beyond the context of pretraining."""

    theta: float
    scaling: str = "default"
    parameters: tuple[tuple[str, float], ...] = ()
    """Constants of `scaling`, by their names in config.json."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How a token finds its experts."""

    chosen: int
    """Experts per token."""
    normalise: bool
    """Whether the chosen experts' weights are renormalised to one."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes, and what is computed: Architecture(shape=ModelShape(family="qwen3", ...), context=40960, ...)."""

    shape: ModelShape
    context: int
    norm_eps: float
    rope: Rope
    qkv_bias: bool = False
    qk_norm: bool = False
    routing: Routing | None = None


class Family(Protocol):
    """A file of `models/`."""

    def describe(self, hf: HfConfig) -> Architecture:
        """The architecture of a config of this family; SpecError where it asks for what the family's file cannot do."""


def describe(hf: HfConfig) -> Architecture:
    """The architecture of a config.json, by the family file named after its `model_type`."""
    name = text(hf, "model_type")
    known = sorted(module.name for module in iter_modules(models.__path__))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SpecError(f"config.json has model_type {name!r}, but the known families are {', '.join(known)}{hint}.")
    family: Family = import_module(f"{models.__name__}.{name}")
    return family.describe(hf)


def dense(hf: HfConfig, *, qkv_bias: bool = False, qk_norm: bool = False) -> Architecture:
    """What the Llama-like families write under the same keys."""
    refuse(hf, "hidden_act", {"silu"})
    return Architecture(
        shape=ModelShape.of(hf),
        context=whole(hf, "max_position_embeddings"),
        norm_eps=real(hf, "rms_norm_eps", 1e-6),
        rope=_rope(hf),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
    )


def refuse(hf: HfConfig, key: str, allowed: set[object]) -> None:
    """SpecError unless the key is absent, null or one of the allowed values."""
    value = hf.get(key)
    if value is not None and value not in allowed:
        choices = " or ".join(repr(choice) for choice in sorted(allowed, key=repr))
        raise SpecError(f"config.json has {key} = {value!r}, but the actor computes only {choices}.")


def text(hf: HfConfig, key: str) -> str:
    """A string the config must have."""
    value = hf.get(key)
    if not isinstance(value, str):
        raise SpecError(f"config.json needs {key} as a string, but has {value!r}.")
    return value


def whole(hf: HfConfig, key: str, default: int | None = None) -> int:
    """A positive whole number, or the default where the config is silent."""
    value = default if hf.get(key) is None else hf[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(f"config.json needs {key} as a positive whole number, but has {value!r}.")
    return value


def real(hf: HfConfig, key: str, default: float | None = None) -> float:
    """A positive number, or the default where the config is silent."""
    value = default if hf.get(key) is None else hf[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise SpecError(f"config.json needs {key} as a positive number, but has {value!r}.")
    return float(value)


def _rope(hf: HfConfig) -> Rope:
    """Rotary settings, under `rope_parameters` or, in older files, under `rope_theta` and `rope_scaling`."""
    written = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(written, Mapping):
        raise SpecError(f"config.json needs its RoPE settings as a mapping, but has {written!r}.")
    scaling = written.get("rope_type") or written.get("type") or "default"
    numbers = {key: value for key, value in written.items() if isinstance(value, bool | int | float)}
    theta = real({"rope_theta": numbers.pop("rope_theta", hf.get("rope_theta"))}, "rope_theta", 10000.0)
    return Rope(theta=theta, scaling=str(scaling), parameters=tuple(sorted(numbers.items())))
