"""Which modules a layer is made of: Transformer Engine's where it runs, Megatron's own with our attention elsewhere."""

from functools import partial

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_mlp_module_spec_for_backend,
)
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from torch import Tensor

from megatron_rl.actor.attention import PackedAttention
from megatron_rl.actor.fused import RmsNorm, has_transformer_engine


def block(config: TransformerConfig, vp_stage: int | None, inverse_R: Tensor) -> TransformerBlockSubmodules:
    """The layers of one chunk of the model, whose positions turn by these frequencies."""
    if has_transformer_engine():
        return get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
    # Megatron-Core 0.16.1's router reads this name also where the import that would define it failed.
    vars(moe_utils).setdefault("te_general_gemm", None)
    first, count = get_transformer_layer_offset(config, vp_stage), get_num_layers_to_build(config, vp_stage=vp_stage)
    layers = [_layer(config, inverse_R, _experts(config, first + local)) for local in range(count)]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RmsNorm)


def _experts(config: TransformerConfig, layer: int) -> int | None:
    """The experts of this layer; None where it has one MLP."""
    frequency = config.moe_layer_freq
    return config.num_moe_experts if isinstance(frequency, list) and frequency[layer] else None


def _layer(config: TransformerConfig, inverse_R: Tensor, experts: int | None) -> ModuleSpec:
    backend = LocalSpecProvider()
    head_norm = RmsNorm if config.qk_layernorm else IdentityOp
    attention = SelfAttentionSubmodules(
        linear_qkv=backend.column_parallel_linear(),
        core_attention=partial(PackedAttention, inverse_R=inverse_R),
        linear_proj=backend.row_parallel_linear(),
        q_layernorm=head_norm,
        k_layernorm=head_norm,
    )
    submodules = TransformerLayerSubmodules(
        input_layernorm=RmsNorm,
        self_attention=ModuleSpec(
            module=SelfAttention, params={"attn_mask_type": AttnMaskType.causal}, submodules=attention
        ),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=RmsNorm,
        mlp=get_mlp_module_spec_for_backend(backend, num_experts=experts),
        mlp_bda=get_bias_dropout_add,
        # A checkpoint keeps the norms under Transformer Engine's names, so it loads with and without that package.
        sharded_state_dict_keys_map={
            "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
            **({} if experts else {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}),
        },
    )
    return ModuleSpec(module=TransformerLayer, submodules=submodules)
