"""Says what a run would need and take on a cluster, or which layout is fastest for a model, without a GPU."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Final

from megatron_rl.actor.architecture import describe
from megatron_rl.commands.exits import DONE
from megatron_rl.planner.hardware import GPUS, Cluster, gpu_named
from megatron_rl.planner.job import Judging, Screen
from megatron_rl.planner.report import overrides, report, sbatch
from megatron_rl.planner.run import Guess, of_run
from megatron_rl.planner.search import predict, search
from megatron_rl.planner.step import Forecast
from megatron_rl.spec.files import read_object
from megatron_rl.spec.load import SHIPPED, load
from megatron_rl.spec.run import RunSpec
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
WIDEST: Final = 10.0
"""Of spreads; here the longest of ordinary responses are a billion times the shortest."""
MOST_ROLLOUTS: Final = 2**17
"""Of a step, each of which is laid out in time."""
IN_THE_FILE: Final = {
    "prompts": "sampler.{sampler}.prompts",
    "samples": "sampler.{sampler}.samples",
    "max_tokens": "sampling.max_tokens",
    "steps": "actor.update.steps",
    "reference": "actor.reference",
    "precision": "actor.precision.compute",
    "ahead": "schedule.ahead",
}
"""Arguments of which a run's file says more: the keys there, given the name of its sampler."""
METHODS: Final = {
    "critic": "configs/ppo.yaml",
    "screen": "configs/speed.yaml",
    "drafted": "configs/spec_rl.yaml",
    "ahead": "configs/grpo_asynchronous.yaml",
    "reference": "configs/grpo.yaml",
}
"""Arguments that ask for a method, and a configuration of it."""
IDEAS: Final = {"critic": "learn", "screen": "sampler"}
SCREEN: Final = ("screened", "screen", "more")
"""The sampler's keys that --screen says, in its order."""
PLAIN: Final = "configs/rloo.yaml"
"""What a model is planned with where no method is asked for."""


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
    step = parser.add_argument_group("one step; otherwise as the YAML file says")
    step.add_argument("--prompts", type=int, help="of a model: that an update learns from")
    step.add_argument("--samples", type=int, help="of a model: rollouts of each prompt")
    step.add_argument("--prompt-tokens", type=int, default=256, help="mean length of a prompt")
    step.add_argument("--mean-tokens", type=float, help="mean length of a response; a third of the most")
    step.add_argument("--max-tokens", type=int, help="of a model: where the engine stops writing")
    step.add_argument("--spread", type=float, default=0.8, help="standard deviation of the logarithm of lengths")
    step.add_argument("--steps", type=int, help="of a model: optimizer steps of an update")
    step.add_argument("--reference", choices=("none", "device", "host"), help="of a model: where its weights wait")
    step.add_argument("--critic", action="store_true", help="of a model: PPO's critic beside the policy")
    step.add_argument("--screen", metavar="SCREENED:FIRST:MORE", help="of a model: SPEED-RL, as in 64:4:20")
    step.add_argument("--drafted", type=float, metavar="SHARE", help="SPEC-RL: of a response, reused")
    step.add_argument("--ahead", type=int, help="steps by which rollouts may lag; 0 is on-policy")
    step.add_argument("--judge", type=float, default=0.02, metavar="S", help="to grade a rollout")
    step.add_argument("--judges", type=int, default=32, help="rollouts graded at once")
    how = parser.add_argument_group("how")
    how.add_argument("--precision", choices=("bf16", "fp8", "fp32"), help="of a model")
    how.add_argument("--kernels", choices=("transformer_engine", "torch"), default="transformer_engine")
    how.add_argument("--sleep", action="store_true", help="engines give back memory while the actor learns")
    how.add_argument("--best", type=int, default=5, help="layouts to show")
    how.add_argument(
        "--config", metavar="YAML", help=f"of a model: what it is planned and started with; {PLAIN}, or the method's"
    )


def run(arguments: argparse.Namespace) -> int:
    is_run = arguments.model.suffix in (".yaml", ".yml")
    _check(arguments, is_run)
    config = arguments.model if is_run else Path(arguments.config or _method(arguments))
    # Our own are found from any folder; the line names them as they are named in the clone, where it is submitted.
    at = config if is_run or arguments.config else SHIPPED.parent / config
    settings = list(arguments.settings) if is_run else [f"model.folder={_folder(arguments.model)}"]
    sizes = [f"model.folder={arguments.sizes}"] if arguments.sizes else []
    settings += _asked(arguments, load(at, [*settings, *sizes]))
    spec = load(at, [*settings, *sizes])
    setup, choice = of_run(spec, _cluster(arguments), _guess(arguments))
    setup = replace(setup, kernels=arguments.kernels)
    if setup.job.written > MOST_ROLLOUTS:
        raise SpecError(f"{setup.job.written} rollouts a step are too many to plan; at most {MOST_ROLLOUTS} are.")
    if arguments.critic and not setup.job.has_critic:
        raise SpecError(f"--critic is asked for, but {config} has none; leave out --config, or name another.")
    ranked: tuple[Forecast, ...]
    if is_run and not arguments.search:
        ranked = (predict(setup, choice),)
    else:
        ranked = search(setup, arguments.best)
        settings += [*_engines(spec), *overrides(setup, ranked[0])]
    for line in (*report(setup, ranked), "", sbatch(setup, str(config), settings)):
        print(line)
    return DONE


def _asked(arguments: argparse.Namespace, spec: RunSpec) -> list[str]:
    """What the arguments say as settings of a run, so that what is planned is what the Slurm line starts."""
    sampler = spec.choices["sampler"].name
    told = {key.format(sampler=sampler): getattr(arguments, name) for name, key in IN_THE_FILE.items()}
    if screen := _screen(arguments.screen):
        told |= {f"sampler.{sampler}.{key}": size for key, size in zip(SCREEN, screen, strict=True)}
    if arguments.sleep:
        told["rollout.vllm.sleep"] = "true"
    return [f"{key}={value}" for key, value in told.items() if value is not None]


def _engines(spec: RunSpec) -> list[str]:
    """What a file says of engines and no other layout can keep."""
    rollout = spec.choices["rollout"]
    return (["rollout=vllm"] if rollout.name != "vllm" else []) + (
        ["rollout.vllm.gpus=[]"] if rollout.values.get("gpus") else []
    )


def _method(arguments: argparse.Namespace) -> str:
    """The configuration of the method that is asked for."""
    asked = [name for name in METHODS if getattr(arguments, name) not in (None, False, 0, "none")]
    if len(asked) > 1:
        ways = " and ".join(f"{_option(name)} is {METHODS[name]}'s" for name in asked)
        raise SpecError(f"{ways}; write a YAML file that has both, and name it instead of the model or with --config.")
    return METHODS[asked[0]] if asked else PLAIN


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
    )


def _folder(model: Path) -> Path:
    """That of a model whose config.json says sizes that can be."""
    path = model / "config.json" if model.is_dir() else model
    if not path.exists():
        raise SpecError(f"{path} does not exist; name a config.json, or the model folder that holds it.")
    sizes = read_object(path, str(path))
    if path.name != "config.json":
        raise SpecError(
            f"{path} is not named config.json; a run reads the sizes of its model from a file of that name."
        )
    try:
        describe(sizes)
    except SpecError as error:
        raise SpecError(f"{model}: {error}") from None
    return path.parent


def _check(arguments: argparse.Namespace, is_run: bool) -> None:
    told = {name: getattr(arguments, name) for name in (*COUNTS, *AMOUNTS, *ABOVE_NOTHING)}
    told = {name: number for name, number in told.items() if number is not None}
    problems = [f"{_option(name)} is {told[name]}, but must be at least 1." for name in COUNTS if told.get(name, 1) < 1]
    problems += [
        f"{_option(name)} is {told[name]:g}, but must be a number, at least 0."
        for name in AMOUNTS
        if not 0 <= told.get(name, 0) < math.inf
    ]
    problems += [
        f"{_option(name)} is {told[name]:g}, but must be a number above 0."
        for name in ABOVE_NOTHING
        if not 0 < told.get(name, 1) < math.inf
    ]
    if WIDEST < arguments.spread < math.inf:
        problems.append(f"--spread is {arguments.spread:g}, but must be at most {WIDEST:g}.")
    if arguments.drafted is not None and not 0 <= arguments.drafted < 1:
        problems.append(f"--drafted is {arguments.drafted}, but must be at least 0 and below 1.")
    if arguments.gpu in GPUS and arguments.spare >= GPUS[arguments.gpu].memory_gib:
        problems.append(
            f"--spare is {arguments.spare:g}, but {arguments.gpu} has {GPUS[arguments.gpu].memory_gib} GiB."
        )
    problems += _misplaced(arguments) if is_run else _unplaced(arguments)
    if problems:
        raise SpecError(problems)


def _misplaced(arguments: argparse.Namespace) -> list[str]:
    """What stands in a run's own file."""
    keys = {name: key for name, key in IN_THE_FILE.items() if name != "ahead"} | IDEAS
    problems = [
        f"{_option(name)} stands in the run's own file; set {key.format(sampler='uniform')}=... instead."
        for name, key in keys.items()
        if getattr(arguments, name) not in (None, False)
    ]
    if arguments.config:
        problems.append("--config is for a model; a run's YAML file is a configuration itself.")
    return problems


def _unplaced(arguments: argparse.Namespace) -> list[str]:
    """What only a run has."""
    problems = []
    if arguments.sizes:
        problems.append("--sizes is for a run's YAML file; a model is planned with its own config.json.")
    if arguments.settings:
        first = arguments.settings[0]
        problems.append(f"'{first}' is a setting of a run; name its YAML file instead of a model.")
    return problems


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
