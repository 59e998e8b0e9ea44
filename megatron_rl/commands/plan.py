"""Says what a run would need and take on a cluster, or which layout is fastest for a model, without a GPU."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Final

from megatron_rl.actor.architecture import Architecture, describe
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import UpdateSettings
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.commands.exits import DONE
from megatron_rl.planner.hardware import GPUS, Cluster, gpu_named
from megatron_rl.planner.job import Job, Judging, Screen, Setup
from megatron_rl.planner.report import overrides, report, sbatch
from megatron_rl.planner.run import Guess, lengths, of_run
from megatron_rl.planner.search import predict, search
from megatron_rl.planner.step import Forecast
from megatron_rl.spec.files import read_object
from megatron_rl.spec.load import load
from megatron_rl.spec.schema import SpecError

EXAMPLE = "example: megatron-rl plan models/Qwen3-8B --nodes 4 --gpus-per-node 8 --gpu h100 --max-tokens 8192"
COUNTS: Final = (
    "nodes",
    "gpus_per_node",
    "prompts",
    "samples",
    "prompt_tokens",
    "max_tokens",
    "steps",
    "judges",
    "best",
)
AMOUNTS: Final = ("spread", "ahead", "judge")
ABOVE_NOTHING: Final = ("network", "spare", "mean_tokens")
IN_THE_FILE: Final = {
    "prompts": (128, "sampler.uniform.prompts"),
    "samples": (8, "sampler.uniform.samples"),
    "max_tokens": (3072, "sampling.max_tokens"),
    "steps": (1, "actor.update.steps"),
    "reference": ("none", "actor.reference"),
    "precision": ("bf16", "actor.precision.compute"),
    "critic": (False, "learn"),
    "screen": (None, "sampler"),
}
"""Arguments that say nothing of a run: their defaults, and the keys that do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.epilog = EXAMPLE
    parser.add_argument("model", type=Path, metavar="WHAT", help="config.json, its folder, or a run's YAML file")
    parser.add_argument("settings", nargs="*", default=[], metavar="key=value", help="settings laid over a YAML file")
    parser.add_argument("--search", action="store_true", help="of a YAML file: other layouts too, not its own alone")
    parser.add_argument(
        "--sizes", metavar="FOLDER", help="of a YAML file: config.json of its model, if that is elsewhere"
    )
    machines = parser.add_argument_group("machines")
    machines.add_argument("--nodes", type=int, default=1)
    machines.add_argument("--gpus-per-node", type=int, default=8)
    machines.add_argument("--gpu", default="h100", help=f"one of {', '.join(GPUS)}")
    machines.add_argument("--network", type=float, default=50.0, metavar="GB/S", help="between machines, for each GPU")
    machines.add_argument("--spare", type=float, default=6.0, metavar="GIB", help="left free on each GPU")
    step = parser.add_argument_group("one step; of a run most of it stands in its YAML file")
    step.add_argument("--prompts", type=int, default=128, help="that an update learns from")
    step.add_argument("--samples", type=int, default=8, help="rollouts of each prompt")
    step.add_argument("--prompt-tokens", type=int, default=256, help="mean length of a prompt")
    step.add_argument("--mean-tokens", type=float, help="mean length of a response; a third of --max-tokens")
    step.add_argument("--max-tokens", type=int, default=3072, help="where the engine stops writing")
    step.add_argument("--spread", type=float, default=0.8, help="standard deviation of the logarithm of lengths")
    step.add_argument("--steps", type=int, default=1, help="optimizer steps of an update")
    step.add_argument("--reference", choices=("none", "device", "host"), default="none", help="where its weights wait")
    step.add_argument("--critic", action="store_true", help="PPO's critic beside the policy")
    step.add_argument("--screen", metavar="SCREENED:FIRST:MORE", help="SPEED-RL, as in 64:4:20")
    step.add_argument("--drafted", type=float, metavar="SHARE", help="SPEC-RL: of a response, reused")
    step.add_argument("--ahead", type=int, default=0, help="steps by which rollouts may lag; 0 is on-policy")
    step.add_argument("--judge", type=float, default=0.02, metavar="S", help="to grade a rollout")
    step.add_argument("--judges", type=int, default=32, help="rollouts graded at once")
    how = parser.add_argument_group("how")
    how.add_argument("--precision", choices=("bf16", "fp8", "fp32"), default="bf16")
    how.add_argument("--kernels", choices=("transformer_engine", "torch"), default="transformer_engine")
    how.add_argument("--sleep", action="store_true", help="engines give back memory while the actor learns")
    how.add_argument("--best", type=int, default=5, help="layouts to show")
    how.add_argument("--config", default="configs/grpo.yaml", help="for the Slurm line")


def run(arguments: argparse.Namespace) -> int:
    is_run = arguments.model.suffix in (".yaml", ".yml")
    config, settings = str(arguments.model) if is_run else arguments.config, list(arguments.settings)
    _check(arguments, is_run)
    if is_run:
        sizes = [f"model.folder={arguments.sizes}"] if arguments.sizes else []
        setup, choice = of_run(load(arguments.model, [*settings, *sizes]), _cluster(arguments), _guess(arguments))
        setup = replace(setup, kernels=arguments.kernels, sleeps=setup.sleeps or arguments.sleep)
    elif arguments.sizes:
        raise SpecError("--sizes is for a run's YAML file; a model is planned with its own config.json.")
    elif settings:
        raise SpecError(f"'{settings[0]}' is a setting of a run; name its YAML file instead of a model.")
    else:
        setup = setup_of(arguments)
    ranked: tuple[Forecast, ...]
    if is_run and not arguments.search:
        ranked = (predict(setup, choice),)
    else:
        ranked = search(setup, arguments.best)
        settings += overrides(setup, ranked[0])
    for line in (*report(setup, ranked), "", sbatch(setup, config, settings)):
        print(line)
    return DONE


def setup_of(arguments: argparse.Namespace) -> Setup:
    """What the arguments ask to be planned, of a model."""
    guess = _guess(arguments)
    return Setup(
        architecture=_architecture(arguments.model),
        cluster=_cluster(arguments),
        job=Job(
            prompts=arguments.prompts,
            samples=arguments.samples,
            lengths=lengths(arguments.max_tokens, guess),
            prompt_tokens=arguments.prompt_tokens,
            optimizer_steps=arguments.steps,
            scores=1 + (arguments.reference != "none") + arguments.critic,
            has_critic=arguments.critic,
            judging=guess.judging,
            screen=_screen(arguments.screen),
            drafted=arguments.drafted or 0.0,
            ahead=arguments.ahead,
        ),
        actor=ActorSettings(
            precision=Precision(compute=arguments.precision),
            update=UpdateSettings(steps=arguments.steps),
            reference=arguments.reference,
        ),
        kernels=arguments.kernels,
        sleeps=arguments.sleep,
    )


def _cluster(arguments: argparse.Namespace) -> Cluster:
    return Cluster(
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        gpu=gpu_named(arguments.gpu),
        network=arguments.network * 1e9,
        spare_gib=arguments.spare,
    )


def _guess(arguments: argparse.Namespace) -> Guess:
    return Guess(
        prompt_tokens=arguments.prompt_tokens,
        response_tokens=arguments.mean_tokens,
        spread=arguments.spread,
        drafted=0.5 if arguments.drafted is None else arguments.drafted,
        judging=Judging(arguments.judge, arguments.judges),
        ahead=arguments.ahead,
    )


def read(model: Path) -> dict[str, object]:
    """The config.json of this path or in this folder."""
    path = model / "config.json" if model.is_dir() else model
    if not path.exists():
        raise SpecError(f"{path} does not exist; name a config.json, or the model folder that holds it.")
    return read_object(path, str(path))


def _architecture(model: Path) -> Architecture:
    hf = read(model)
    try:
        return describe(hf)
    except SpecError as error:
        raise SpecError(f"{model}: {error}") from None


def _check(arguments: argparse.Namespace, is_run: bool) -> None:
    told = {name: getattr(arguments, name) for name in (*COUNTS, *AMOUNTS, *ABOVE_NOTHING)}
    problems = [f"{_option(name)} is {told[name]}, but must be at least 1." for name in COUNTS if told[name] < 1]
    problems += [
        f"{_option(name)} is {told[name]:g}, but must be a number, at least 0."
        for name in AMOUNTS
        if not 0 <= told[name] < math.inf
    ]
    problems += [
        f"{_option(name)} is {told[name]:g}, but must be a number above 0."
        for name in ABOVE_NOTHING
        if told[name] is not None and not 0 < told[name] < math.inf
    ]
    if arguments.drafted is not None and not 0 <= arguments.drafted < 1:
        problems.append(f"--drafted is {arguments.drafted}, but must be at least 0 and below 1.")
    if arguments.gpu in GPUS and arguments.spare >= GPUS[arguments.gpu].memory_gib:
        problems.append(
            f"--spare is {arguments.spare:g}, but {arguments.gpu} has {GPUS[arguments.gpu].memory_gib} GiB."
        )
    rows = arguments.prompts * arguments.samples
    if not is_run and arguments.screen is None and rows < arguments.steps:
        problems.append(f"--steps is {arguments.steps}, but {rows} rollouts cannot be shared out among more than that.")
    if is_run:
        problems += [
            f"{_option(name)} stands in the run's own file; set {key}=... instead."
            for name, (default, key) in IN_THE_FILE.items()
            if getattr(arguments, name) != default
        ]
    if problems:
        raise SpecError(problems)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _screen(text: str | None) -> Screen | None:
    if text is None:
        return None
    try:
        screened, first, more = (int(part) for part in text.split(":"))
    except ValueError:
        raise SpecError(f"--screen is {text!r}, but should be three whole numbers, as in 64:4:20.") from None
    if min(screened, first, more) < 1:
        raise SpecError(f"--screen is {text!r}, but each of its numbers must be at least 1.")
    return Screen(screened, first, more)
