"""The model of a Hugging Face config.json, as the chunks of it that this rank holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import lcm

from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel.utils import (
    is_pp_first_stage,
    is_pp_last_stage,
    is_vp_first_stage,
    is_vp_last_stage,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_rl.actor import fit, layer_spec
from megatron_rl.actor.adapter import Adapter
from megatron_rl.actor.architecture import Architecture, HfConfig, describe
from megatron_rl.actor.context import Context
from megatron_rl.actor.cpu import device
from megatron_rl.actor.fused import has_transformer_engine
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision, check_hardware
from megatron_rl.actor.recompute import KEEP_EVERYTHING, Recompute
from megatron_rl.actor.recompute import check as check_recompute
from megatron_rl.actor.rope import frequencies
from megatron_rl.actor.transformer_config import transformer_config
from megatron_rl.reshard.layout import Key
from megatron_rl.reshard.megatron import megatron_vocabulary


@dataclass(frozen=True, kw_only=True)
class Model:
    """What `build` makes: Model(chunks=(GPTModel,), config=TransformerConfig(...), ...); one chunk without `vpp`."""

    chunks: tuple[GPTModel, ...]
    config: TransformerConfig
    architecture: Architecture
    parallel: Parallel
    precision: Precision
    padded_vocabulary: int
    head: bool = True
    """Whether the last chunk ends in the vocabulary; a critic's ends in a value."""
    adapters: Mapping[Key, Adapter] = field(default_factory=dict)
    """What learns beside frozen matrices, by the names of those; none where the weights learn themselves."""

    @property
    def token_multiple(self) -> int:
        """Every micro-batch's token count must be a multiple of this."""
        context = Context(self.parallel.cp)
        return lcm(context.multiple, self.parallel.token_multiple * self.precision.token_multiple)


def build(
    hf_config: HfConfig,
    parallel: Parallel,
    precision: Precision,
    recompute: Recompute = KEEP_EVERYTHING,
    kind: type[GPTModel] = GPTModel,
) -> Model:
    """Chunks with random weights on this rank's device; the ranks must have been `cut` the same way before."""
    architecture = describe(hf_config)
    fit.check(architecture, parallel)
    check_hardware(precision)
    check_recompute(recompute, parallel.chunk_layers(architecture.shape.layers))
    config = transformer_config(architecture, parallel, precision, recompute)
    padded = megatron_vocabulary(architecture.shape.vocabulary, parallel.tp)
    stages = range(parallel.vpp) if parallel.vpp > 1 else (None,)
    chunks = tuple(_chunk(kind, architecture, config, padded, stage) for stage in stages)
    return Model(
        chunks=chunks,
        config=config,
        architecture=architecture,
        parallel=parallel,
        precision=precision,
        padded_vocabulary=padded,
    )


def _chunk(
    kind: type[GPTModel], architecture: Architecture, config: TransformerConfig, padded: int, stage: int | None
) -> GPTModel:
    ranks = ProcessGroupCollection.use_mpu_process_groups()
    stages = config.virtual_pipeline_model_parallel_size
    inverse_R = frequencies(architecture).inverse_R.to(device())
    model = kind(
        config=config,
        transformer_layer_spec=layer_spec.block(config, stage, inverse_R),
        vocab_size=padded,
        max_sequence_length=architecture.context,
        pre_process=is_vp_first_stage(stage, stages) and is_pp_first_stage(ranks.pp),
        post_process=is_vp_last_stage(stage, stages) and is_pp_last_stage(ranks.pp),
        share_embeddings_and_output_weights=architecture.shape.tied,
        # Layers of Megatron's own modules rotate in their attention.
        position_embedding_type="rope" if has_transformer_engine() else "none",
        rotary_base=architecture.rope.theta,
        vp_stage=stage,
    )
    if has_transformer_engine():
        # Megatron knows one scaling rule with fixed constants; the config's rule and constants replace its frequencies.
        model.rotary_pos_emb.inv_freq = inverse_R
    # torch makes its norms in float32; the distributed optimizer finds moments by place in a group of one type, so one
    # parameter of another type would swap the moments of its neighbours.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(config.params_dtype)
    return model.to(device())
