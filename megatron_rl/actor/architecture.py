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

    def describe(self, config: HfConfig) -> Architecture:
        """The architecture of a config of this family; SpecError where it asks for what the family's file cannot do."""


def describe(config: HfConfig) -> Architecture:
    """The architecture of a config.json, by the family file named after its `model_type`."""
    name = text(config, "model_type")
    known = sorted(module.name for module in iter_modules(models.__path__))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SpecError(f"config.json has model_type {name!r}, but the known families are {', '.join(known)}{hint}.")
    family: Family = import_module(f"{models.__name__}.{name}")
    return family.describe(config)


def dense(config: HfConfig, *, qkv_bias: bool = False, qk_norm: bool = False) -> Architecture:
    """What the Llama-like families write under the same keys."""
    refuse(config, "hidden_act", {"silu"})
    return Architecture(
        shape=ModelShape.of(config),
        context=whole(config, "max_position_embeddings"),
        norm_eps=real(config, "rms_norm_eps", 1e-6),
        rope=_rope(config),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
    )


def refuse(config: HfConfig, key: str, allowed: set[object]) -> None:
    """SpecError unless the key is absent, null or one of the allowed values."""
    value = config.get(key)
    if value is not None and value not in allowed:
        choices = " or ".join(repr(choice) for choice in sorted(allowed, key=repr))
        raise SpecError(f"config.json has {key} = {value!r}, but the actor computes only {choices}.")


def text(config: HfConfig, key: str) -> str:
    """A string the config must have."""
    value = config.get(key)
    if not isinstance(value, str):
        raise SpecError(f"config.json needs {key} as a string, but has {value!r}.")
    return value


def whole(config: HfConfig, key: str, default: int | None = None) -> int:
    """A positive whole number, or the default where the config is silent."""
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(f"config.json needs {key} as a positive whole number, but has {value!r}.")
    return value


def real(config: HfConfig, key: str, default: float | None = None) -> float:
    """A positive number, or the default where the config is silent."""
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise SpecError(f"config.json needs {key} as a positive number, but has {value!r}.")
    return float(value)


def _rope(config: HfConfig) -> Rope:
    """Rotary settings, under `rope_parameters` or, in older files, under `rope_theta` and `rope_scaling`."""
    written = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(written, Mapping):
        raise SpecError(f"config.json needs its RoPE settings as a mapping, but has {written!r}.")
    scaling = written.get("rope_type") or written.get("type") or "default"
    numbers = {key: value for key, value in written.items() if isinstance(value, bool | int | float)}
    theta = real({"rope_theta": numbers.pop("rope_theta", config.get("rope_theta"))}, "rope_theta", 10000.0)
    return Rope(theta=theta, scaling=str(scaling), parameters=tuple(sorted(numbers.items())))
