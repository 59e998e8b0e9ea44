"""Engines over scripted groups: everything of the driver's side, without vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_rl.reshard.delivery import Cut, Delivery, Source
from megatron_rl.reshard.layout import ModelShape
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vllm_engine import Scale, VllmEngine
from megatron_rl.rollout.vllm_fleet import Fleet, Terms
from megatron_rl.rollout.vllm_group import CoreOrder
from megatron_rl.rollout.vllm_host import Post, Seat
from megatron_rl.rollout.vllm_wave import Patience
from megatron_rl.rollout.vocabulary import Vocabulary
from tests.rollout.opening import words

SHAPE = ModelShape(
    family="qwen3", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=32, ffn=96, vocabulary=101, item_bytes=4
)
SOURCE = Source(shape=SHAPE, cut=Cut(tp=1, pp=1, chunks=(2,)))
TERMS = Terms(tp=1, dtype="float32", verify="sample", wire="memory", start_s=60.0, sync_s=30.0)


def order(folder: Path, fault: str = "none") -> CoreOrder:
    return CoreOrder(
        folder=str(folder / fault),
        dtype="float32",
        context=64,
        tp=1,
        rows=8,
        cache_bytes=1,
        memory_share=0.9,
        may_sleep=False,
        needs_text=False,
    )


def post(folder: Path, number: int = 0) -> Post:
    return Post(
        name=f"vLLM group {number}",
        log=folder / f"vllm_{number}.log",
        threads=1,
        gpus=(),
        module="tests.fakes.scripted_group",
    )


def open_fleet(folder: Path, fault: str = "none", groups: int = 1, seats: Sequence[Seat] = ()) -> Fleet:
    fleet = Fleet(terms=TERMS, posts=[post(folder, number) for number in range(groups)], order=order(folder, fault))
    fleet.source = SOURCE
    fleet.start(seats)
    return fleet


def sends_nothing(delivery: Delivery, version: int) -> None:
    """Scripted groups have no weights."""


def open_scripted(
    folder: Path,
    fault: str = "none",
    groups: int = 1,
    send: Callable[[Delivery, int], None] | None = sends_nothing,
    seats: Sequence[Seat] = (),
    **patience: float,
) -> VllmEngine:
    """An engine that serves version 0."""
    waits = Patience(**{"deadline_s": None, "silence_s": 30.0, "start_s": 60.0, **patience})
    scale = Scale(context=64, vocabulary=101, rows=8, retries=2, patience=waits, in_flight="halves" in fault)
    vocabulary = Vocabulary(decode=words, end=(1,))
    engine = VllmEngine(open_fleet(folder, fault, groups, seats), scale, vocabulary, SamplingSettings(max_tokens=6))
    engine.expect(SOURCE, send)
    engine.begin(0)
    engine.finish(0)
    engine.serve(0)
    return engine
