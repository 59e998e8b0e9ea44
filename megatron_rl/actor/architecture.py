"""What a Hugging Face config.json says of a decoder-only transformer, in one vocabulary for all families."""

import difflib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Final, Protocol

from megatron_rl.actor import models
from megatron_rl.reshard.layout import LayoutError, ModelShape
from megatron_rl.spec.schema import SpecError

HfConfig = Mapping[str, object]
"""A parsed config.json."""


CONSTANTS: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""The scaling rules of RoPE that are computed, and the constants that each cannot do without."""

ATTENTION: Final = "attention_factor"
FREE_CONSTANTS: Final = (ATTENTION, "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
"""Constants that YaRN has values of its own for."""


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions: the base, and how it is stretched beyond the context of pretraining."""

    theta: float
    scaling: str = "default"
    parameters: tuple[tuple[str, float], ...] = ()
    """Constants of `scaling`, by their names in config.json, each a number that the rule can compute with."""


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
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise SpecError(f"config.json has model_type {name!r}, but the known families are {', '.join(known)}{hint}.")
    family: Family = import_module(f"{models.__name__}.{name}")
    try:
        return family.describe(hf)
    except LayoutError as error:
        raise SpecError(str(error)) from None


def dense(hf: HfConfig, *, qkv_bias: bool = False, qk_norm: bool = False) -> Architecture:
    """What the Llama-like families write under the same keys."""
    refuse(hf, "hidden_act", ("silu",))
    refuse(hf, "quantization_config", ())
    _refuse_windows(hf)
    shape = ModelShape.of(hf)
    _check_heads(hf, shape)
    return Architecture(
        shape=shape,
        context=whole(hf, "max_position_embeddings"),
        norm_eps=real(hf, "rms_norm_eps", 1e-6),
        rope=_rope(hf),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
    )


def refuse(hf: HfConfig, key: str, allowed: Collection[object]) -> None:
    """SpecError unless the key is absent, null or one of the allowed values."""
    value = hf.get(key)
    if value is not None and value not in allowed:
        choices = " or ".join(repr(choice) for choice in allowed) or "models without it"
        raise SpecError(f"config.json has {key} = {value!r:.100}, but the actor computes only {choices}.")


def _refuse_windows(hf: HfConfig) -> None:
    kinds = hf.get("layer_types") or ()
    if not isinstance(kinds, list | tuple) or any(kind != "full_attention" for kind in kinds):
        raise SpecError(f"config.json has layer_types = {kinds!r:.100}, but the actor computes only 'full_attention'.")


def _check_heads(hf: HfConfig, shape: ModelShape) -> None:
    heads, kv_heads = shape.heads, shape.kv_heads
    if heads % kv_heads:
        raise SpecError(
            f"config.json has {heads} attention heads, which cannot share {kv_heads} key-value heads evenly."
        )
    if hf.get("head_dim") is None and shape.hidden % heads:
        raise SpecError(
            f"config.json has no head_dim, and hidden_size {shape.hidden} does not divide over {heads} heads."
        )
    if shape.head_dim % 2:
        raise SpecError(f"config.json gives a head_dim of {shape.head_dim}, but RoPE turns pairs, so it must be even.")


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
    # The bounds leave out what is not finite, and whole numbers that no float can hold.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise SpecError(f"config.json needs {key} as a positive number, but has {value!r}.")
    return float(value)


def _rope(hf: HfConfig) -> Rope:
    """Rotary settings as transformers reads them, where several places disagree too.

    They stand under `rope_scaling` in older files, which wins, or under `rope_parameters`; the base may stand beside.
    """
    written = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(written, Mapping):
        raise SpecError(f"config.json needs its RoPE settings as a mapping, but has {written!r}.")
    scaling = written.get("rope_type") or written.get("type") or "default"
    if not isinstance(scaling, str) or scaling not in CONSTANTS:
        raise SpecError(
            f"config.json has RoPE scaling {scaling!r}, but the actor knows {', '.join(sorted(CONSTANTS))}."
        )
    nested = [key for key, value in written.items() if isinstance(value, Mapping | list)]
    if nested:
        raise SpecError(f"config.json has RoPE settings of {nested[0]!r} alone, but the actor turns all heads alike.")
    refuse({"partial_rotary_factor": hf.get("partial_rotary_factor"), **written}, "partial_rotary_factor", (1,))
    theta = real(hf if written.get("rope_theta") is None else written, "rope_theta", 10000.0)
    if theta <= 1:
        raise SpecError(f"config.json has rope_theta = {theta!r}, but the base of RoPE is above 1.")
    return Rope(theta=theta, scaling=scaling, parameters=tuple(sorted(_constants(hf, scaling, written).items())))


def _constants(hf: HfConfig, scaling: str, written: HfConfig) -> dict[str, float]:
    """Those of the rule, and of YaRN also the free ones that are given."""
    # The context of pretraining counts where it stands beside the settings, before what they say themselves.
    beside = hf.get("original_max_position_embeddings") or written.get("original_max_position_embeddings")
    given = {**written, "original_max_position_embeddings": beside or whole(hf, "max_position_embeddings")}
    found = {name: real(given, name) for name in CONSTANTS[scaling]}
    if scaling == "llama3" and found["low_freq_factor"] >= found["high_freq_factor"]:
        raise SpecError(
            f"config.json has low_freq_factor {found['low_freq_factor']} and high_freq_factor "
            f"{found['high_freq_factor']}, but RoPE's high one must be above the low one."
        )
    if scaling == "yarn":
        # A zero means YaRN's own value, but for the factor of attention, where it would be taken at its word.
        free = (name for name in FREE_CONSTANTS if given.get(name) not in ((None,) if name == ATTENTION else (None, 0)))
        found |= {name: real(given, name) for name in free}
        refuse(given, "truncate", (True, False))
        found["truncate"] = bool(given.get("truncate", True))
    return found
