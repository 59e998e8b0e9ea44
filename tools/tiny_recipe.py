"""Runs a recipe at scale tiny: the same YAML on a CPU, with the model shrunk to two layers, two steps, toy prompts.

python tools/tiny_recipe.py examples/Qwen3-4B/jspo_dapo17k.yaml runs/tiny

What a recipe chooses of algorithm, reward, optimizer and recomputation stays; the folder's `tiny.yaml`, which extends
the recipe, says what does not, and that rollouts come from the embedded engine. The tiny model's vocabulary holds
answers in the form that the recipe's reward reads, so that even random weights are right about half the time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
import yaml
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as ByteTokenizer
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from megatron_rl import launch
from megatron_rl.data.prompt_file import Prompt, user, write_prompts
from megatron_rl.spec.load import load
from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError

MODELS: Final = Path(__file__).resolve().parents[1] / "examples" / "models"
SPECIAL: Final = ("<pad>", "<end>", "<unk>")
PROMPTS: Final = 12
VOCABULARY: Final = 64
WORDINGS: Final = 16
"""Words that hold each answer; with two answers half of the vocabulary."""
NUMBERS: Final = ("1", "2")
ROLES: Final = ("Ann is a knight, and Bo is a knave.", "Ann is a knave, and Bo is a knight.")
FORMS: Final[Mapping[str, tuple[str, tuple[str, str]]]] = {
    "math": ("\\boxed{%s}", NUMBERS),
    "math_dapo": ("\nAnswer: %s\n", NUMBERS),
    "gsm8k": ("#### %s", NUMBERS),
    "knights": ("\\boxed{%s}", ROLES),
    "knights_official": ("\\boxed{%s}", ROLES),
}
"""How an answer is written, and two answers, by reward."""
SIZES: Final[Mapping[str, int]] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}


def shrink(recipe: Path, folder: Path) -> Path:
    """Writes model, prompts and `tiny.yaml` into the folder, and returns the last."""
    spec = load(recipe)
    reward, model = spec.choices["reward"].name, Path(str(spec.settings["model"].values["folder"])).name
    if reward not in FORMS:
        raise SpecError(f"{recipe}: the reward is '{reward}', and tiny answers can be written for {', '.join(FORMS)}.")
    form, answers = FORMS[reward]
    if not (MODELS / model / "config.json").is_file():
        known = ", ".join(sorted(each.name for each in MODELS.iterdir()))
        raise SpecError(f"{recipe}: examples/models has no config.json of '{model}', only of {known}.")
    published = json.loads((MODELS / model / "config.json").read_text(encoding="utf-8"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_model(published, words(form, answers), folder / "model")
    made = (Prompt(prompt=user(f"q{n}"), answer=answers[n % 2], source="tiny") for n in range(PROMPTS))
    write_prompts(folder / "prompts.parquet", made)
    path = folder / "tiny.yaml"
    changed = changes(spec, folder)
    path.write_text(yaml.safe_dump({"extends": str(recipe.resolve()), **changed}), encoding="utf-8")
    return path


def changes(spec: RunSpec, folder: Path) -> dict[str, object]:
    """What a tiny run has otherwise than its recipe."""
    prompts = str(folder / "prompts.parquet")
    values = {"values": str(folder / "values.parquet")} if spec.settings["data"].values["values"] else {}
    steps = spec.settings["actor"].values["update"]["steps"]  # type: ignore[index]  # a section
    return {
        "run": {"folder": str(folder / "runs")},
        "model": {"folder": str(folder / "model")},
        "data": {"train": [prompts], "evaluate": [prompts], **values},
        "schedule": {"steps": 2, "save_every": 2, "evaluate_every": 2},
        "actor": {"tp": 1, "pp": 1, "vpp": 1, "dp": 1, "ep": 1, "update": {"steps": min(2, steps)}},
        "rollout": "embedded",
        "sampling": {"max_tokens": 8},
        "sampler": _drawn(spec),
        "judge": {"processes": 1},
        "evaluation": {"samples": 2},
    }


def _drawn(spec: RunSpec) -> dict[str, object]:
    """A few prompts; as many waves as the recipe may need, and groups where it has groups."""
    sampler = spec.choices["sampler"]
    if "screened" in sampler.values:
        return {sampler.name: {"prompts": 2, "screened": 6, "screen": 2, "more": 2}}
    fewer = {"prompts": 4, "samples": min(4, int(str(sampler.values["samples"])))}
    return {sampler.name: {**fewer, **({"wave": 8} if sampler.values["wave"] else {})}}


def words(form: str, answers: tuple[str, str]) -> list[str]:
    """The vocabulary: the letters of prompts, both answers in many wordings, and what fills it up."""
    said = [f" so{number} {form % answer}" for answer in answers for number in range(WORDINGS)]
    known = [*SPECIAL, "q", *"0123456789", *said]
    return [*known, *(f" hm{number}" for number in range(VOCABULARY - len(known)))]


def write_model(published: dict[str, object], vocabulary: list[str], folder: Path) -> None:
    """A Hugging Face folder of the published architecture in a small size, with random weights and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    smaller = {key: size for key, size in SIZES.items() if key in published}
    ends = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None, "initializer_range": 0.06}
    (folder / "config.json").write_text(json.dumps({**published, **smaller, **ends}), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    model.save_pretrained(folder)
    write_tokenizer(vocabulary, folder)


def write_tokenizer(vocabulary: list[str], folder: Path) -> None:
    """Bytes without merges, since `transformers` takes every tokenizer of some families to be that; words are added."""
    known = {word: place for place, word in enumerate(vocabulary)}
    tokenizer = ByteTokenizer(BPE(known, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in vocabulary if len(word) > 1])
    named = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", model_max_length=256
    )
    named.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    named.save_pretrained(folder)


def run(path: Path) -> Path:
    """Trains, after a value run where the recipe asks for one; returns the run's folder."""
    spec = load(path)
    if values := spec.settings["data"].values["values"]:
        launch.values(spec, 4, Path(str(values)))
    launch.train(spec)
    settings = spec.settings["run"].values
    return Path(str(settings["folder"])) / str(settings["name"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="its YAML file")
    parser.add_argument("folder", type=Path, help="where model, prompts and the run are put")
    arguments = parser.parse_args()
    try:
        print(run(shrink(arguments.recipe, arguments.folder)))
    except SpecError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
