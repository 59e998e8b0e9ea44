"""Programs for the ranks of an actor that learns by LoRA, and PEFT's own adapters to compare with."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from megatron_rl.actor import weights
from megatron_rl.actor.lora import LoraSettings
from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.placement import together
from megatron_rl.reshard.plan import plan
from megatron_rl.reshard.transport import Exchange
from tests.actor.forwarding import logits
from tests.actor.training import EVERYTHING, actor_of, contents
from tests.fakes.rollouts import rollouts

RANK, ALPHA = 4, 6.0
LENGTHS = (7, 7, 1, 13, 4)
TOKENS = torch.randint(0, 101, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1)).tolist()
BATCHES = [rollouts(seed=seed) for seed in range(2)]


def peft_adapter(base: Path, folder: Path, targets: tuple[str, ...], **more: Any) -> np.ndarray:
    """Writes an adapter with random factors as PEFT does, and returns the logits that PEFT computes with it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(3)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets), task_type="CAUSAL_LM", **more)
    adapted = get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    adapted.save_pretrained(folder)
    return logits_of(adapted)


def peft_logits(base: Path, adapter: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return logits_of(PeftModel.from_pretrained(model, adapter).eval())


def plain_logits(folder: Path) -> np.ndarray:
    return logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager"))


@torch.no_grad()
def logits_of(model: Any) -> np.ndarray:
    alone = [model(sequence[None]).logits[0] for sequence in torch.tensor(TOKENS).split(LENGTHS)]
    return torch.cat(alone).numpy()


def started(folder: Path, adapter: Path, exported: Path, targets: tuple[str, ...], **cut: Any) -> np.ndarray | None:
    """The actor's logits with this adapter; merged weights are in `exported` and the adapter again in `back`."""
    lora = LoraSettings(rank=RANK, alpha=ALPHA, targets=targets, start=adapter)
    actor = actor_of(folder, lora=lora, **cut)
    weights.export(actor.model, exported, like=folder)
    actor.save(exported.with_name(f"{exported.name}-saved")).result()
    with torch.no_grad():
        return logits(actor.model, TOKENS, LENGTHS)


def sent(folder: Path, adapter: Path, exported: Path) -> list[list[str]]:
    """Before and after an update, the tensors of which a plan carries other bits than an export writes."""
    actor = actor_of(folder, lora=LoraSettings(rank=RANK, alpha=ALPHA, start=adapter))
    source, target = weights.layout(actor.model), huggingface_layout(actor.model.architecture.shape)
    received = {tensor.key: torch.zeros(tensor.shape) for tensor in target.tensors(0)}
    exchange = Exchange(
        plan=plan(source, target, together(source, target)),
        sources={0: weights.published(actor.model)},
        targets={0: received},
        dtype=torch.float32,
    )
    differing = []
    for version in range(2):
        exchange.run(version)
        weights.export(actor.model, exported, like=folder)
        written = contents(exported)
        differing.append(
            [key.name for key, tensor in received.items() if not np.array_equal(tensor, written[key.name])]
        )
        actor.update(BATCHES[version], EVERYTHING)
    return differing


def learnt(folder: Path, exported: Path, **choices: Any) -> dict[str, Any]:
    """Two updates: what they told, what moved, what the reference policy says before and after."""
    lora = choices.pop("lora", LoraSettings(rank=RANK, alpha=ALPHA))
    actor = actor_of(folder, lora=lora, **choices)
    before = {key: tensor.clone() for key, tensor in weights.parameters(actor.model).items()}
    began = actor.score(BATCHES[0])
    metrics = [dict(actor.update(batch, EVERYTHING).metrics) for batch in BATCHES]
    weights.export(actor.model, exported, like=folder)
    return {
        "metrics": metrics,
        "began": began.values.numpy(),
        "scores": actor.score(BATCHES[0]).values.numpy(),
        "reference": actor.score(BATCHES[0], "reference").values.numpy(),
        "again": actor.score(BATCHES[0]).values.numpy(),
        "is_untouched": all(torch.equal(before[key], now) for key, now in weights.parameters(actor.model).items()),
        "frozen": sum(one.requires_grad for one in _all(actor)) == 2 * len(actor.model.adapters),
        "state": sum(tensor.numel() for tensor in _moments(actor)),
        "adapters": sum(one.numel() for adapter in actor.model.adapters.values() for one in adapter.parameters()),
    }


def _all(actor: Any) -> list[torch.nn.Parameter]:
    return [parameter for chunk in actor.model.chunks for parameter in chunk.parameters()]


def _moments(actor: Any) -> list[torch.Tensor]:
    optimizers = [inner.optimizer for inner in actor.optimizer.megatron.chained_optimizers]
    return [state["exp_avg"] for one in optimizers for state in one.state.values()]


def stop_and_go(folder: Path, saved: Path, **choices: Any) -> list[bool]:
    """Whether each update after a load, and the changes in the end, are those of the actor that went on."""
    lora = LoraSettings(rank=RANK, alpha=ALPHA)
    whole = actor_of(folder, lora=lora, **choices)
    whole.update(BATCHES[0], EVERYTHING)
    whole.save(saved).result()
    # Another actor's first changes are not this one's; all of them must come from the folder.
    resumed = actor_of(folder, lora=lora, origin={"seed": 7}, **choices)
    resumed.load(saved)
    same = []
    for batch in (*BATCHES, *BATCHES):
        one, other = whole.update(batch, EVERYTHING), resumed.update(batch, EVERYTHING)
        same.append(one.metrics == other.metrics)
    pairs = zip(_all(whole), _all(resumed), strict=True)
    return [*same, all(torch.equal(one, other) for one, other in pairs)]


def pass_on(folder: Path, saved: Path, to: Path, **cut: Any) -> None:
    """Loads at one cut what another saved, and saves it again."""
    actor = actor_of(folder, lora=LoraSettings(rank=RANK, alpha=ALPHA), origin={"seed": 7}, **cut)
    actor.load(saved)
    actor.save(to).result()
