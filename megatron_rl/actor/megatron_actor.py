"""The policy being trained by Megatron-Core. Every rank calls the same methods with the same arguments."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_rl.actor import adapters, groups, saving, vocab_parallel, weights
from megatron_rl.actor.build import Model, build
from megatron_rl.actor.learner import Learner
from megatron_rl.actor.megatron_critic import MegatronCritic
from megatron_rl.actor.reference import Reference
from megatron_rl.actor.sequences import Packed
from megatron_rl.actor.settings import ActorSettings, CriticSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.ragged import Ragged
from megatron_rl.beside import beside
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.ports import Objective, Policy, Update
from megatron_rl.spec.schema import SpecError


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an actor starts from: Origin(folder=Path("models/qwen3"), sampling=Sampling(temperature=0.7))."""

    folder: Path
    """Hugging Face folder of the weights."""
    reference: Path | None = None
    """Hugging Face folder of the reference policy's weights; None takes those the actor starts with."""
    sampling: Sampling = Sampling()
    """The law rollouts are drawn from, under which every log-probability is meant."""
    critic: CriticSettings | None = None
    """How a critic beside the policy learns; None keeps no critic."""
    seed: int = 0
    """What the first changes of LoRA are drawn from."""
    makes_room: bool = False
    """Whether an engine wakes up on the same GPU after an update, and needs what torch would keep for the next one."""


class MegatronActor(Learner):
    """One rank of the actor. The ranks have joined and been cut before; several actors may share one cut."""

    def __init__(self, settings: ActorSettings, origin: Origin) -> None:
        if origin.sampling.temperature == 0:
            raise SpecError("sampling.temperature is 0, under which nothing can be learnt; give it a positive value.")
        self.origin = origin
        model = build(weights.read_config(origin.folder), settings, settings.precision, settings.recompute)
        self.reference = _reference(model, settings, origin)
        weights.load(model, origin.folder)
        if settings.lora is not None:
            model = adapters.attached(model, settings.lora, origin.seed)
        self.law = vocab_parallel.Law(
            origin.sampling,
            model.architecture.shape.vocabulary,
            parallel_state.get_tensor_model_parallel_group(),
        )
        super().__init__(settings, model, self._read)
        self.writers = saving.Writers()
        self.critic = MegatronCritic(settings, origin.critic, origin.folder) if origin.critic else None

    def update(self, batch: Batch, objective: Objective) -> Update:
        """Learns from the batch; the steps that met a number that is not finite left every weight untouched."""
        update = self.learn(batch, objective)
        if self.origin.makes_room:
            torch.cuda.empty_cache()
        return update

    def score(self, batch: Batch, policy: Policy = "current") -> Ragged:
        """Log-probability of each response token, training state untouched."""
        if policy == "current":
            return self.predict(batch)
        with self._as_reference():
            return self.predict(batch)

    def save(self, folder: Path) -> Future[None]:
        """Copies parameters, moments and progress, those of the critic too, and writes them beside what comes next.

        What LoRA learnt is there a second time, as an adapter that PEFT opens.
        """
        writes = [self.set_aside(folder, self.writers)]
        if self.settings.lora is not None:
            adapters.export(self.model, folder / "adapter", self.settings.lora, base=self.origin.folder)
        if self.critic is not None:
            writes.append(self.critic.set_aside(folder / "critic", self.writers))

        def write() -> None:
            for each in writes:
                each()

        return beside(write, "save")

    def load(self, folder: Path) -> None:
        """Continues from a saved state; the reference policy stays the one the actor was made with."""
        super().load(folder)
        if self.critic is not None:
            self.critic.load(folder / "critic")

    def close(self) -> None:
        """Leaves the other ranks, unless another actor of this process already has."""
        if dist.is_initialized():
            groups.leave()

    @property
    def writing(self) -> str:
        """What this rank is writing its part of; nothing while it waits for another rank's part."""
        return self.writers.at

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """Within, the model is the reference policy; under LoRA that is the model itself without its changes."""
        if self.reference is None and (self.origin.reference or not self.model.adapters):
            raise SpecError("The reference policy is asked for, but actor.reference is 'none'; set 'device' or 'host'.")
        with adapters.silent(self.model):
            if self.reference is None:
                yield
                return
            with self.reference.inside(self.model):
                yield

    def _read(self, logits_TV: Tensor, packed: Packed) -> vocab_parallel.Scored:
        return vocab_parallel.score(logits_TV, packed.predictor_S, packed.target_S, self.law)


def _reference(model: Model, settings: ActorSettings, origin: Origin) -> Reference | None:
    if settings.reference == "none" or (settings.lora and not origin.reference):
        return None
    weights.load(model, origin.reference or origin.folder)
    return Reference.of(model, offload=settings.reference == "host")
