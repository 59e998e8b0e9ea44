"""What each rank must hold, sliced from Hugging Face tensors with numpy, knowing nothing of layouts.

Written from what Megatron-Core and vLLM do with the tensors: query rows are grouped under their key-value head, and the
fused rows then cut; gate and up are cut each for itself; interleaved pipelines deal chunks of layers round the stages.
"""

import numpy as np

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.layout import Key, ModelShape

Arrays = dict[Key, np.ndarray]


def checkpoint(shape: ModelShape) -> dict[str, np.ndarray]:
    """Every tensor of the checkpoint, each element a number of its own, and no element zero."""
    sizes = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden), "model.norm.weight": (shape.hidden,)}
    if not shape.tied:
        sizes["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        sizes |= {f"model.layers.{layer}.{name}": size for name, size in _layer_sizes(shape, layer).items()}
    tensors, first = {}, 1
    for name, size in sizes.items():
        count = int(np.prod(size))
        tensors[name] = np.arange(first, first + count, dtype=np.int64).reshape(size)
        first += count
    return tensors


def _layer_sizes(shape: ModelShape, layer: int) -> dict[str, tuple[int, ...]]:
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "input_layernorm.weight": (shape.hidden,),
        "post_attention_layernorm.weight": (shape.hidden,),
        "self_attn.q_proj.weight": (q, shape.hidden),
        "self_attn.k_proj.weight": (kv, shape.hidden),
        "self_attn.v_proj.weight": (kv, shape.hidden),
        "self_attn.o_proj.weight": (shape.hidden, q),
    }
    if shape.family == "qwen2":
        sizes |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    if shape.family in ("qwen3", "qwen3_moe"):
        sizes |= {"self_attn.q_norm.weight": (shape.head_dim,), "self_attn.k_norm.weight": (shape.head_dim,)}
    if not shape.experts or layer in shape.dense_layers:
        return sizes | _mlp_sizes("mlp.", shape.ffn, shape.hidden)
    sizes["mlp.gate.weight"] = (shape.experts, shape.hidden)
    for expert in range(shape.experts):
        sizes |= _mlp_sizes(f"mlp.experts.{expert}.", shape.expert_ffn, shape.hidden)
    return sizes


def _mlp_sizes(prefix: str, ffn: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (ffn, hidden),
        f"{prefix}up_proj.weight": (ffn, hidden),
        f"{prefix}down_proj.weight": (hidden, ffn),
    }


def chunk(array: np.ndarray, rank: int, ranks: int, axis: int = 0) -> np.ndarray:
    return np.split(array, ranks, axis)[rank]


def padded(array: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((rows - len(array), array.shape[1]), array.dtype)])


def megatron(
    hf: dict[str, np.ndarray], shape: ModelShape, cut: Parallel, rank: int, fused_norms: bool = False
) -> Arrays:
    """The parameters of one rank of a Megatron-Core actor; `fused_norms` as Transformer Engine's modules have them."""
    tp_rank, stage_size = rank % cut.tp, cut.tp * cut.cp * cut.dp
    stage, within = rank // stage_size, rank % stage_size
    chunks = cut.stage_layers or (shape.layers // (cut.pp * cut.vpp),) * (cut.pp * cut.vpp)
    model_order = np.split(np.arange(shape.layers), np.cumsum(chunks)[:-1])
    held: Arrays = {}
    for vpp_rank in range(cut.vpp):
        position = vpp_rank * cut.pp + stage
        for local, layer in enumerate(model_order[position]):
            own = _megatron_layer(hf, shape, cut, int(layer), tp_rank, within, fused_norms)
            held |= {Key(vpp_rank, f"decoder.layers.{local}.{name}"): array for name, array in own.items()}
        rows = shape.vocabulary
        while rows % 16 or rows % cut.tp:
            rows += 1
        embedding = chunk(padded(hf["model.embed_tokens.weight"], rows), tp_rank, cut.tp)
        if position == 0:
            held[Key(vpp_rank, "embedding.word_embeddings.weight")] = embedding
        if position == cut.pp * cut.vpp - 1:
            held[Key(vpp_rank, "decoder.final_layernorm.weight")] = hf["model.norm.weight"]
            if not shape.tied:
                held[Key(vpp_rank, "output_layer.weight")] = chunk(padded(hf["lm_head.weight"], rows), tp_rank, cut.tp)
            elif cut.pp > 1:
                held[Key(vpp_rank, "output_layer.weight")] = embedding
    return held


def _megatron_layer(
    hf: dict[str, np.ndarray], shape: ModelShape, cut: Parallel, layer: int, rank: int, within: int, fused_norms: bool
) -> dict[str, np.ndarray]:
    own = {
        name.removeprefix(f"model.layers.{layer}."): array for name, array in hf.items() if f".{layer}." in name[:16]
    }
    tp, sparse = cut.tp, "mlp.gate.weight" in own
    held = {
        "self_attention.linear_qkv.layer_norm_weight" if fused_norms else "input_layernorm.weight": own[
            "input_layernorm.weight"
        ],
        "self_attention.linear_proj.weight": chunk(own["self_attn.o_proj.weight"], rank, tp, 1),
        "mlp.linear_fc1.layer_norm_weight" if fused_norms and not sparse else "pre_mlp_layernorm.weight": own[
            "post_attention_layernorm.weight"
        ],
    }
    for kind in ("weight", "bias"):
        if f"self_attn.q_proj.{kind}" in own:
            q, k, v = (own[f"self_attn.{which}_proj.{kind}"] for which in "qkv")
            groups = [array.reshape(shape.kv_heads, -1, *array.shape[1:]) for array in (q, k, v)]
            fused = np.concatenate(groups, axis=1).reshape(-1, *q.shape[1:])
            held[f"self_attention.linear_qkv.{kind}"] = chunk(fused, rank, tp)
    for which in "qk":
        if f"self_attn.{which}_norm.weight" in own:
            held[f"self_attention.{which}_layernorm.weight"] = own[f"self_attn.{which}_norm.weight"]
    if not sparse:
        return held | _megatron_mlp(own, "mlp.", "mlp.linear_fc{}.weight", rank, tp)
    held["mlp.router.weight"] = own["mlp.gate.weight"]
    count, expert_tp = shape.experts // cut.ep, 1 if cut.ep > 1 else tp
    ep_rank = within // expert_tp % cut.ep
    for local in range(count):
        name = f"mlp.experts.linear_fc{{}}.weight{local}"
        if not fused_norms:
            name = f"mlp.experts.local_experts.{local}.linear_fc{{}}.weight"
        held |= _megatron_mlp(own, f"mlp.experts.{ep_rank * count + local}.", name, within % expert_tp, expert_tp)
    return held


def _megatron_mlp(own: dict[str, np.ndarray], hf: str, name: str, rank: int, tp: int) -> dict[str, np.ndarray]:
    gate, up = chunk(own[f"{hf}gate_proj.weight"], rank, tp), chunk(own[f"{hf}up_proj.weight"], rank, tp)
    return {
        name.format(1): np.concatenate([gate, up]),
        name.format(2): chunk(own[f"{hf}down_proj.weight"], rank, tp, 1),
    }


def vllm(hf: dict[str, np.ndarray], shape: ModelShape, tp: int, rank: int) -> Arrays:
    """The parameters of one vLLM worker."""
    held = {}
    for name, array in hf.items():
        *parents, leaf, kind = name.split(".")
        stem = ".".join(parents)
        if leaf in ("embed_tokens", "lm_head"):
            held[name] = chunk(padded(array, -(-shape.vocabulary // 64) * 64), rank, tp)
        elif ".experts." in name:
            continue
        elif leaf in ("o_proj", "down_proj"):
            held[name] = chunk(array, rank, tp, 1)
        elif leaf == "q_proj":
            k, v = (_kv(hf[f"{stem}.{which}_proj.{kind}"], shape, tp, rank) for which in "kv")
            held[f"{stem}.qkv_proj.{kind}"] = np.concatenate([chunk(array, rank, tp), k, v])
        elif leaf == "gate_proj":
            gate, up = chunk(array, rank, tp), chunk(hf[f"{stem}.up_proj.weight"], rank, tp)
            held[f"{stem}.gate_up_proj.weight"] = np.concatenate([gate, up])
        elif leaf not in ("k_proj", "v_proj", "up_proj"):
            held[name] = array
        if leaf == "gate":
            experts = [_expert(hf, f"{stem}.experts.{expert}", tp, rank) for expert in range(shape.experts)]
            held[f"{stem}.experts.routed_experts.w13_weight"] = np.stack([one[0] for one in experts])
            held[f"{stem}.experts.routed_experts.w2_weight"] = np.stack([one[1] for one in experts])
    return {Key(0, name): array for name, array in held.items()}


def _kv(array: np.ndarray, shape: ModelShape, tp: int, rank: int) -> np.ndarray:
    if shape.kv_heads >= tp:
        return chunk(array, rank, tp)
    return chunk(array, rank // (tp // shape.kv_heads), shape.kv_heads)


def _expert(hf: dict[str, np.ndarray], stem: str, tp: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    gate, up = (chunk(hf[f"{stem}.{which}_proj.weight"], rank, tp) for which in ("gate", "up"))
    return np.concatenate([gate, up]), chunk(hf[f"{stem}.down_proj.weight"], rank, tp, 1)
