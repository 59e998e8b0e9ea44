"""The configuration that a command is given, checked as far as that goes before anything heavy is imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_rl.actor import fit, lora, precision
from megatron_rl.actor.architecture import Architecture, describe
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.rollout.servable import refuse_unservable
from megatron_rl.spec.files import check_inputs, read_model_config
from megatron_rl.spec.load import load
from megatron_rl.spec.resolve import build
from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError


def add_configuration(parser: argparse.ArgumentParser, meaning: str = "YAML file") -> None:
    """The arguments that say which run is meant."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help=meaning)
    parser.add_argument(
        "settings", nargs="*", default=[], metavar="key=value", help="settings laid over the file, as in actor.tp=2"
    )


def checked(config: Path, settings: Sequence[str], *, has_values: bool = True) -> RunSpec:
    """The run that was asked for, as far as it can be checked before anything heavy is imported.

    A value run has no `data.values` yet: it writes them.
    """
    spec = load(config, settings)
    actor = build(spec.settings["actor"])
    if not isinstance(actor, ActorSettings):
        raise TypeError(f"the actor section builds ActorSettings, got {actor!r}")
    build(spec.settings["run"])
    described = _architecture(config, spec)
    try:
        precision.check(actor.precision)
        fit.check(described, actor)
        lora.check(actor.lora, described, actor)
    except (LayoutError, SpecError) as error:
        raise SpecError(f"{config}: {error}") from None
    if spec.choices["rollout"].name == "vllm":
        sections = ("sampling", "evaluation") if spec.settings["data"].values["evaluate"] else ("sampling",)
        refuse_unservable({section: float(str(spec.settings[section].values["temperature"])) for section in sections})
    check_inputs(spec, has_values=has_values)
    return spec


def _architecture(config: Path, spec: RunSpec) -> Architecture:
    hf = read_model_config(spec)
    try:
        return describe(hf)
    except SpecError as error:
        folder = spec.settings["model"].values["folder"]
        raise SpecError(f"{config}: in the model folder '{folder}', {error}") from None


def folder_of(spec: RunSpec) -> Path:
    """The run's folder."""
    values = spec.settings["run"].values
    return Path(str(values["folder"])) / str(values["name"])
