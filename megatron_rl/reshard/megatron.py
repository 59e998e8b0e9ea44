"""What each rank of a Megatron-Core actor holds."""

from collections.abc import Iterator
from math import lcm
from typing import NamedTuple, Protocol

from megatron_rl.reshard import cuts
from megatron_rl.reshard.layout import Block, Layout, LayoutError, LocalTensor, ModelShape, Shard, share
from megatron_rl.reshard.names import EMBEDDING, FINAL_NORM, HEAD, TIED_HEAD, Cut, Modules, Row


class Parallelism(Protocol):
    """How an actor is cut; the actor's own `Parallel` is one. `dp` and `cp` replicate weights, `ep` deals experts."""

    @property
    def tp(self) -> int: ...
    @property
    def pp(self) -> int: ...
    @property
    def vpp(self) -> int: ...
    @property
    def dp(self) -> int: ...
    @property
    def cp(self) -> int: ...
    @property
    def ep(self) -> int: ...
    def chunk_layers(self, layers: int) -> tuple[int, ...]:
        """Layers of each of the `pp * vpp` chunks, in model order: chunk `c` of stage `p` is the `c * pp + p`-th."""


class _Place(NamedTuple):
    """Where a shard stands. Experts are cut over `etp` ranks where other tensors are cut over `tp`."""

    tp: int
    pp: int
    ep: int = 0
    etp: int = 0


def megatron_vocabulary(vocabulary: int, tp: int) -> int:
    """Rows of the padded embedding: they divide over any `tp` that divides 16, or over this one."""
    multiple = lcm(16, tp)
    return -(-vocabulary // multiple) * multiple


def megatron_layout(
    shape: ModelShape,
    parallel: Parallelism,
    *,
    modules: Modules = "local",
    vocabulary: int | None = None,
    head: bool = True,
) -> Layout:
    """The layout of an actor in Megatron's rank order: tp fastest, then cp, dp, pp.

    `vocabulary` is the padded one, `megatron_vocabulary` unless given. Without `head` the output layer is left out,
    as a critic's value head has no Hugging Face tensor.
    """
    if shape.experts % parallel.ep or (parallel.ep > 1 and not shape.experts):
        raise LayoutError(f"{shape.experts} experts do not divide over ep {parallel.ep}; choose a divisor.")
    padded = vocabulary or megatron_vocabulary(shape.vocabulary, parallel.tp)
    if padded < shape.vocabulary:
        raise LayoutError(f"a padded vocabulary of {padded} is smaller than the model's {shape.vocabulary}; pad it up.")
    builder = _Builder(shape, parallel, modules, padded, head)
    places = [_place(rank, parallel, bool(shape.experts)) for rank in range(_world(parallel))]
    distinct = {place: number for number, place in enumerate(dict.fromkeys(places))}
    return Layout(
        shape=shape,
        shards=tuple(builder.shard(place) for place in distinct),
        ranks=tuple(distinct[place] for place in places),
        label="megatron "
        + " ".join(f"{name}{getattr(parallel, name)}" for name in ("tp", "cp", "dp", "pp", "vpp", "ep"))
        .replace(" cp1", "")
        .replace(" vpp1", "")
        .replace(" ep1", ""),
    )


def _world(parallel: Parallelism) -> int:
    return parallel.tp * parallel.cp * parallel.dp * parallel.pp


def _expert_tp(parallel: Parallelism) -> int:
    """Experts that are dealt over ranks are whole on each; otherwise they are cut like every other tensor."""
    return 1 if parallel.ep > 1 else parallel.tp


def _place(rank: int, parallel: Parallelism, sparse: bool) -> _Place:
    stage, within = divmod(rank, parallel.tp * parallel.cp * parallel.dp)
    etp = _expert_tp(parallel)
    if not sparse:
        return _Place(tp=within % parallel.tp, pp=stage)
    return _Place(tp=within % parallel.tp, pp=stage, ep=within // etp % parallel.ep, etp=within % etp)


class _Builder:
    """Makes shards, sharing the template of every layer that looks the same."""

    def __init__(self, shape: ModelShape, parallel: Parallelism, modules: Modules, padded: int, head: bool) -> None:
        self.shape, self.parallel, self.modules, self.padded, self.head = shape, parallel, modules, padded, head
        self.chunk_layers = parallel.chunk_layers(shape.layers)
        self.templates: dict[tuple[bool, int, int, int], tuple[LocalTensor, ...]] = {}

    def shard(self, place: _Place) -> Shard:
        return Shard(blocks=tuple(self._blocks(place)))

    def _blocks(self, place: _Place) -> Iterator[Block]:
        for chunk in range(self.parallel.vpp):
            position = chunk * self.parallel.pp + place.pp
            first = sum(self.chunk_layers[:position])
            for local in range(self.chunk_layers[position]):
                yield Block(
                    template=self._layer(first + local, place),
                    hf_prefix=f"model.layers.{first + local}.",
                    local_prefix=f"decoder.layers.{local}.",
                    chunk=chunk,
                )
            ends = tuple(self._ends(place.tp, position))
            if ends:
                yield Block(template=ends, chunk=chunk)

    def _ends(self, rank: int, position: int) -> Iterator[LocalTensor]:
        shape, tp = self.shape, self.parallel.tp
        is_first, is_last = position == 0, position == len(self.chunk_layers) - 1
        rows = share(self.padded, rank, tp, "rows of the padded vocabulary")
        if is_first:
            yield cuts.vocabulary(EMBEDDING.megatron(self.modules), EMBEDDING.hf[0], shape, rows)
        if is_last:
            yield cuts.replicated(FINAL_NORM.megatron(self.modules), FINAL_NORM.hf[0], shape)
        if is_last and self.head and not (shape.tied and is_first):
            head = TIED_HEAD if shape.tied else HEAD
            yield cuts.vocabulary(head.megatron(self.modules), head.hf[0], shape, rows)

    def _layer(self, layer: int, place: _Place) -> tuple[LocalTensor, ...]:
        sparse = self.shape.is_sparse(layer)
        key = (sparse, place.tp, place.ep if sparse else 0, place.etp if sparse else 0)
        if key not in self.templates:
            rows = self.shape.rows(layer)
            self.templates[key] = tuple(tensor for row in rows for tensor in self._tensors(row, place))
        return self.templates[key]

    def _tensors(self, row: Row, place: _Place) -> Iterator[LocalTensor]:
        name, tp = row.megatron(self.modules), self.parallel.tp
        if "{expert}" not in name:
            yield self._tensor(row.cut, name, row, place.tp, tp)
            return
        own = self.shape.experts // self.parallel.ep
        for local in range(own):
            expert = row._replace(hf=cuts.numbered(row.hf, place.ep * own + local))
            (local_name,) = cuts.numbered((name,), local)
            yield self._tensor(row.cut, local_name, expert, place.etp, _expert_tp(self.parallel))

    def _tensor(self, cut: Cut, name: str, row: Row, rank: int, tp: int) -> LocalTensor:
        match cut:
            case Cut.QKV:
                return cuts.stacked(name, cuts.megatron_qkv(row, self.shape, rank, tp), self.shape)
            case Cut.GATE_UP:
                return cuts.stacked(name, cuts.gate_up(row.hf, self.shape, rank, tp), self.shape)
            case Cut.COLUMNS:
                return cuts.columns(name, row.hf[0], self.shape, rank, tp)
            case _:
                return cuts.replicated(name, row.hf[0], self.shape)
