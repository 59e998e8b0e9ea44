"""Which box of which tensor each rank holds: metadata alone, no tensor is ever touched.

The common language is Hugging Face's: an element of the model is an element of a tensor of the Hugging Face
checkpoint, and every other storage says which box of that tensor it keeps where. Ranks that hold the same thing
share one `Shard`, and layers that look the same share one template, so a layout of a thousand ranks stays small.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

from megatron_rl.reshard.names import FAMILIES, Row

Interval = tuple[int, int]
"""From, and up to but not including."""

Box = tuple[Interval, ...]
"""One interval for each axis of a tensor."""


class LayoutError(ValueError):
    """A layout, or a plan between two, that cannot be. One sentence that says what to change."""


LARGEST = 1 << 24
"""A width or vocabulary of a config.json above this is a slip of the pen, whose bytes 64 bits may not count."""
MOST = 1 << 13
"""The same of layers, heads and experts, which would be counted one by one for ever."""

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a model: ModelShape(family="qwen3", layers=36, hidden=4096, kv_heads=8, ...)."""

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    tied: bool = False
    experts: int = 0
    expert_ffn: int = 0
    dense_layers: tuple[int, ...] = ()
    """Layers of a mixture of experts that have one MLP instead."""
    item_bytes: int = 2

    @staticmethod
    def of(hf_config: Mapping[str, object]) -> "ModelShape":
        """The sizes that a parsed config.json gives."""
        family = hf_config.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            raise LayoutError(
                f"config.json has model_type {family!r}, but the families with a table are {', '.join(FAMILIES)}; "
                "choose one of them or add a table to reshard/names.py."
            )
        for key in ("mlp_bias", "attention_bias"):
            if hf_config.get(key):
                raise LayoutError(f"config.json sets {key}, but the table of {family} has no such tensors; unset it.")
        layers, hidden, heads = (
            _whole(hf_config, key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
        )
        # transformers 5 writes the number of experts under another name than the published files.
        named = "num_experts" if "num_experts" in hf_config else "num_local_experts"
        experts = _whole(hf_config, named) if FAMILIES[family].sparse else 0
        return ModelShape(
            family=family,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=_whole(hf_config, "num_key_value_heads", heads),
            head_dim=_whole(hf_config, "head_dim", hidden // heads),
            ffn=_whole(hf_config, "intermediate_size"),
            vocabulary=_whole(hf_config, "vocab_size"),
            tied=_truth(hf_config, "tie_word_embeddings"),
            experts=experts,
            expert_ffn=_whole(hf_config, "moe_intermediate_size") if experts else 0,
            dense_layers=_dense_layers(hf_config, layers) if experts else (),
            item_bytes=ITEM_BYTES.get(str(hf_config.get("dtype") or hf_config.get("torch_dtype")), 2),
        )

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer has experts."""
        return self.experts > 0 and layer not in self.dense_layers

    def rows(self, layer: int) -> tuple[Row, ...]:
        """The tensors of this layer."""
        table = FAMILIES[self.family]
        return table.sparse if self.is_sparse(layer) else table.dense

    def hf_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a Hugging Face tensor, by its full name or the name inside its layer."""
        module, kind = name.rsplit(".", 2)[-2:]
        ffn = self.expert_ffn if ".experts." in name else self.ffn
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shape = {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
            "gate_proj": (ffn, self.hidden),
            "up_proj": (ffn, self.hidden),
            "down_proj": (self.hidden, ffn),
            "gate": (self.experts, self.hidden),
            "embed_tokens": (self.vocabulary, self.hidden),
            "lm_head": (self.vocabulary, self.hidden),
            "q_norm": (self.head_dim,),
            "k_norm": (self.head_dim,),
        }.get(module, (self.hidden,))
        return shape[:1] if kind == "bias" else shape


class Piece(NamedTuple):
    """`box` of the Hugging Face tensor `name` lies in `at` of a local tensor.

    Piece(name="self_attn.k_proj.weight", box=((128, 256), (0, 1024)), at=((512, 640), (0, 1024))). Where the local
    tensor stacks several, as vLLM does with experts, `at` starts with an interval of length one that `box` lacks.
    """

    name: str
    box: Box
    at: Box


class Key(NamedTuple):
    """A local tensor of a rank: `name` as `named_parameters()` gives it in chunk `chunk`, 0 unless interleaved."""

    chunk: int
    name: str


class LocalTensor(NamedTuple):
    """A tensor a rank holds, tiled by its pieces and by `zeros`, the padding that no Hugging Face tensor fills."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    zeros: tuple[Box, ...] = ()
    chunk: int = 0

    @property
    def key(self) -> Key:
        """How the tensors of a rank are told apart."""
        return Key(self.chunk, self.name)


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A layer, or what stands outside the layers: a template that gets its names from two prefixes.

    Block(template=..., hf_prefix="model.layers.12.", local_prefix="decoder.layers.4.") is the fifth layer of its chunk.
    """

    template: tuple[LocalTensor, ...]
    hf_prefix: str = ""
    local_prefix: str = ""
    chunk: int = 0

    def tensors(self) -> Iterator[LocalTensor]:
        """The template under its full names."""
        for tensor in self.template:
            yield LocalTensor(
                name=self.local_prefix + tensor.name,
                shape=tensor.shape,
                pieces=tuple(piece._replace(name=self.hf_prefix + piece.name) for piece in tensor.pieces),
                zeros=tensor.zeros,
                chunk=self.chunk,
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """All that a rank holds."""

    blocks: tuple[Block, ...]

    def tensors(self) -> Iterator[LocalTensor]:
        """Every tensor under its full name."""
        for block in self.blocks:
            yield from block.tensors()

    @cached_property
    def elements(self) -> int:
        """Elements of the Hugging Face tensors it holds, padding not counted."""
        return sum(volume(piece.box) for block in self.blocks for tensor in block.template for piece in tensor.pieces)


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The shards of a model and, for each rank, the one it holds; data-parallel replicas name the same shard."""

    shape: ModelShape
    shards: tuple[Shard, ...]
    ranks: tuple[int, ...]
    group: int = 1
    """Neighbouring ranks that may be renumbered among themselves before they start: a rollout group."""
    label: str = ""
    """For people: "megatron tp8 pp16 dp8"."""

    def tensors(self, rank: int) -> Iterator[LocalTensor]:
        """What this rank holds, under full names."""
        return self.shards[self.ranks[rank]].tensors()


def volume(box: Box) -> int:
    """Elements in a box."""
    return prod(stop - start for start, stop in box)


def whole(shape: tuple[int, ...]) -> Box:
    """The box that is all of a tensor."""
    return tuple((0, size) for size in shape)


def share(size: int, rank: int, ranks: int, what: str) -> Interval:
    """The `rank`-th of `ranks` equal ranges; LayoutError where `size` does not divide."""
    if size % ranks:
        raise LayoutError(
            f"{size} {what} do not divide over {ranks} tensor-parallel ranks; choose a divisor of {size}."
        )
    each = size // ranks
    return rank * each, (rank + 1) * each


def _whole(hf_config: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = default if hf_config.get(key) is None else hf_config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LayoutError(f"config.json needs {key} as a positive whole number, but has {value!r}.")
    most = LARGEST if key.endswith("_size") else MOST
    if value > most:
        raise LayoutError(f"config.json has a {key} beyond that of any model; it should be at most {most}.")
    return value


def _truth(hf_config: Mapping[str, object], key: str) -> bool:
    value = hf_config.get(key)
    if value is not None and not isinstance(value, bool):
        raise LayoutError(f"config.json needs {key} as true or false, but has {value!r}.")
    return value is True


def _dense_layers(hf_config: Mapping[str, object], layers: int) -> tuple[int, ...]:
    step, listed = _whole(hf_config, "decoder_sparse_step", 1), hf_config.get("mlp_only_layers") or ()
    if not isinstance(listed, list | tuple):
        raise LayoutError(f"config.json needs mlp_only_layers as a list of layers, but has {listed!r}.")
    return tuple(layer for layer in range(layers) if layer in listed or (layer + 1) % step)
