"""The sections of a run, and what each of them is described by: the dataclass of the component that will receive it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from annotated_types import Ge

Kind = Literal["settings", "choice", "chain"]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where a run lives and what makes it repeatable."""

    name: str = "run"
    """Name of the run, and of its folder."""
    folder: Path = Path("runs")
    """Folder in which the run's own folder is made."""
    seed: Annotated[int, Ge(0)] = 0
    """Everything random follows from it."""

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name or "\0" in self.name:
            raise ValueError(f"run.name is {self.name!r}, but it names one folder inside run.folder; take a plain word")
        if "\0" in str(self.folder):
            raise ValueError(f"run.folder is {str(self.folder)!r}, which no folder can be called")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model a run starts from."""

    folder: Path
    """Hugging Face folder: config.json, safetensors, tokenizer."""
    reference: Path | None = None
    """Folder of the reference policy's weights; null takes the model's own."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A top-level key: `settings` of one dataclass, the `choice` of an idea, or a `chain` of stages in order.

    Section(name="sampler", kind="choice", room="samplers", meaning="Chooses prompts.")
    """

    name: str
    meaning: str
    kind: Kind = "settings"
    target: str = ""
    """`package.module:Class` of the settings."""
    room: str = ""
    """Folder whose files are the known names of a choice or of a chain's steps."""
    default: str = ""
    """The name taken where a choice is not written; empty where one must be."""
    known: tuple[str, ...] = ()
    """The names of a choice, where its room holds other things too; empty takes every file of the room."""


SECTIONS: Final = (
    Section(name="run", target="megatron_rl.spec.run:RunSettings", meaning="The run's name, folder and seed."),
    Section(name="model", target="megatron_rl.spec.run:ModelSettings", meaning="The model to train."),
    Section(name="schedule", target="megatron_rl.schedule:Schedule", meaning="Steps, and when to save and evaluate."),
    Section(name="actor", target="megatron_rl.actor.settings:ActorSettings", meaning="How Megatron-Core trains."),
    Section(
        name="critic",
        target="megatron_rl.actor.settings:CriticSettings",
        meaning="How PPO's critic learns, where a stage asks for one.",
    ),
    Section(
        name="rollout",
        kind="choice",
        room="rollout",
        meaning="The engine that writes rollouts.",
        default="embedded",
        known=("embedded", "vllm"),
    ),
    Section(
        name="sampling",
        target="megatron_rl.rollout.settings:SamplingSettings",
        meaning="The law tokens are drawn from.",
    ),
    Section(name="data", target="megatron_rl.data.prompts:DataSettings", meaning="Prompts to learn from and held out."),
    Section(name="sampler", kind="choice", room="samplers", meaning="Chooses prompts."),
    Section(name="collect", kind="chain", room="stages", meaning="Stages from drawn prompts to judged rollouts."),
    Section(name="learn", kind="chain", room="stages", meaning="Stages from judged rollouts to what the loss reads."),
    Section(name="objective", kind="choice", room="objectives", meaning="Prices tokens."),
    Section(name="reward", kind="choice", room="rewards", meaning="Scores answers."),
    Section(name="judge", target="megatron_rl.rewards.pool:JudgeSettings", meaning="How answers are graded."),
    Section(name="evaluation", target="megatron_rl.evaluate:EvaluationSettings", meaning="How the policy is measured."),
    Section(
        name="cluster",
        target="megatron_rl.cluster.settings:ClusterSettings",
        meaning="Where the processes of a run stand; one process needs none of it.",
    ),
    Section(
        name="telemetry",
        target="megatron_rl.telemetry.settings:TelemetrySettings",
        meaning="What is written and shown.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One checked choice of a run, ready to be built: the class, what was written for it, and where."""

    path: str
    """'sampler', 'learn[1]'."""
    name: str
    """'uniform'; the section's own name where there is no choice."""
    target: str
    """`package.module:Class`."""
    given: Mapping[str, object]
    values: Mapping[str, object]
    """What was given, completed by the defaults that the source tells."""
    place: str


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything a run was asked to be. Nothing has been imported or built yet."""

    settings: Mapping[str, Part]
    """The `settings` sections by name."""
    choices: Mapping[str, Part]
    """The chosen sampler, objective, reward."""
    chains: Mapping[str, tuple[Part, ...]]
    """The steps of `collect` and `learn`."""
    files: tuple[str, ...]
    """The configuration files this came from, the outermost first."""

    @property
    def plain(self) -> dict[str, object]:
        """The run as YAML would write it, defaults included; reading it back gives the same run."""
        written: dict[str, object] = {}
        for section in SECTIONS:
            if section.kind == "chain":
                written[section.name] = [{part.name: dict(part.values)} for part in self.chains[section.name]]
            elif section.kind == "choice":
                part = self.choices[section.name]
                written[section.name] = {part.name: dict(part.values)}
            else:
                written[section.name] = dict(self.settings[section.name].values)
        return written
