"""One table per model family: what each tensor is called by Hugging Face, Megatron-Core and vLLM, and how it is cut.

Names inside a layer are relative to `model.layers.N.` (Hugging Face, vLLM) and `decoder.layers.N.` (Megatron-Core);
`{expert}` stands for the number of an expert: of all experts for Hugging Face, of the rank's own for Megatron-Core.
"""

from enum import Enum
from typing import Literal, NamedTuple

Modules = Literal["local", "transformer_engine"]
"""Which modules Megatron-Core is built of. Transformer Engine fuses a norm into the linear layer that follows it."""


class Cut(Enum):
    """How tensor-parallel ranks share a tensor."""

    WHOLE = "every rank holds all of it"
    COLUMNS = "each rank holds a range of input columns"
    QKV = "query, key and value rows fused and cut by heads"
    GATE_UP = "gate and up rows fused, each cut by rows"
    VOCABULARY = "rows padded, then cut"


class Row(NamedTuple):
    """One tensor of Megatron-Core and vLLM, and the Hugging Face tensors it is fused of."""

    cut: Cut
    hf: tuple[str, ...]
    local: str
    transformer_engine: str
    vllm: str

    def megatron(self, modules: Modules) -> str:
        """Its name in a Megatron-Core model built of these modules."""
        return self.local if modules == "local" else self.transformer_engine


class Table(NamedTuple):
    """The tensors of a family's layers: `dense` with one MLP, `sparse` with experts."""

    dense: tuple[Row, ...]
    sparse: tuple[Row, ...] = ()


def _same(cut: Cut, hf: str, megatron: str) -> Row:
    return Row(cut=cut, hf=(hf,), local=megatron, transformer_engine=megatron, vllm=hf)


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_FC1, _FC2 = (
    "mlp.experts.local_experts.{expert}.linear_fc1.weight",
    "mlp.experts.local_experts.{expert}.linear_fc2.weight",
)

ATTENTION = (
    Row(
        cut=Cut.WHOLE,
        hf=("input_layernorm.weight",),
        local="input_layernorm.weight",
        transformer_engine="self_attention.linear_qkv.layer_norm_weight",
        vllm="input_layernorm.weight",
    ),
    Row(
        cut=Cut.QKV,
        hf=tuple(f"{name}.weight" for name in _QKV),
        local="self_attention.linear_qkv.weight",
        transformer_engine="self_attention.linear_qkv.weight",
        vllm="self_attn.qkv_proj.weight",
    ),
    _same(Cut.COLUMNS, "self_attn.o_proj.weight", "self_attention.linear_proj.weight"),
)

QKV_BIAS = (
    Row(
        cut=Cut.QKV,
        hf=tuple(f"{name}.bias" for name in _QKV),
        local="self_attention.linear_qkv.bias",
        transformer_engine="self_attention.linear_qkv.bias",
        vllm="self_attn.qkv_proj.bias",
    ),
)

QK_NORM = (
    _same(Cut.WHOLE, "self_attn.q_norm.weight", "self_attention.q_layernorm.weight"),
    _same(Cut.WHOLE, "self_attn.k_norm.weight", "self_attention.k_layernorm.weight"),
)

MLP = (
    Row(
        cut=Cut.WHOLE,
        hf=("post_attention_layernorm.weight",),
        local="pre_mlp_layernorm.weight",
        transformer_engine="mlp.linear_fc1.layer_norm_weight",
        vllm="post_attention_layernorm.weight",
    ),
    Row(
        cut=Cut.GATE_UP,
        hf=("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        local="mlp.linear_fc1.weight",
        transformer_engine="mlp.linear_fc1.weight",
        vllm="mlp.gate_up_proj.weight",
    ),
    _same(Cut.COLUMNS, "mlp.down_proj.weight", "mlp.linear_fc2.weight"),
)

EXPERTS = (
    # A mixture has no single linear layer to fuse this norm into, so Transformer Engine keeps it apart too.
    _same(Cut.WHOLE, "post_attention_layernorm.weight", "pre_mlp_layernorm.weight"),
    _same(Cut.WHOLE, "mlp.gate.weight", "mlp.router.weight"),
    Row(
        cut=Cut.GATE_UP,
        hf=("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight"),
        local=_FC1,
        transformer_engine="mlp.experts.linear_fc1.weight{expert}",
        vllm="mlp.experts.routed_experts.w13_weight",
    ),
    Row(
        cut=Cut.COLUMNS,
        hf=("mlp.experts.{expert}.down_proj.weight",),
        local=_FC2,
        transformer_engine="mlp.experts.linear_fc2.weight{expert}",
        vllm="mlp.experts.routed_experts.w2_weight",
    ),
)

EMBEDDING = _same(Cut.VOCABULARY, "model.embed_tokens.weight", "embedding.word_embeddings.weight")
FINAL_NORM = _same(Cut.WHOLE, "model.norm.weight", "decoder.final_layernorm.weight")
HEAD = _same(Cut.VOCABULARY, "lm_head.weight", "output_layer.weight")
TIED_HEAD = HEAD._replace(hf=EMBEDDING.hf)
"""The head of a tied model where it is a tensor of its own: on a pipeline stage that lacks the embedding."""

FAMILIES = {
    "llama": Table(dense=(*ATTENTION, *MLP)),
    "qwen2": Table(dense=(*ATTENTION, *QKV_BIAS, *MLP)),
    "qwen3": Table(dense=(*ATTENTION, *QK_NORM, *MLP)),
    "qwen3_moe": Table(dense=(*ATTENTION, *QK_NORM, *MLP), sparse=(*ATTENTION, *QK_NORM, *EXPERTS)),
}
"""By `model_type` of config.json."""
