"""Chained arithmetic modulo 100, as token ids: a task that a tiny model learns in a minute.

<q> a 4 7 ; c * 3 ; b + 5 ; c ? <think>  ->  a 4 7 b + 5 5 2 c * 3 5 6 <answer> 5 6 <eos>
"""

from __future__ import annotations

import numpy as np

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PROMPT_TOKENS, TOKENS

SYMBOLS = [*"0123456789", *"+-*", *"abcdefghijklmnop", ";", "?", "<q>", "<think>", "<answer>", "<eos>"]
ID = {symbol: number for number, symbol in enumerate(SYMBOLS)}
VOCABULARY = 64


def demonstration(draw: np.random.Generator, guesses: bool, slip: float) -> tuple[list[int], list[int]]:
    """A prompt of one to eight steps, its definitions shuffled, and a response: a thought in order, or a mere guess."""
    names = SYMBOLS[13 : 14 + int(draw.integers(1, 9))]
    value = int(draw.integers(10, 100))
    lines, thought = [f"{names[0]}{value:02d};"], f"{names[0]}{value:02d}"
    for name in names[1:]:
        operator, digit = str(draw.choice(["+", "-", "*"])), int(draw.integers(2, 10))
        value = {"+": value + digit, "-": value - digit, "*": value * digit}[operator] % 100
        if draw.random() < slip:
            value = int(draw.integers(0, 100))
        lines.append(f"{name}{operator}{digit};")
        thought += f"{name}{operator}{digit}{value:02d}"
    draw.shuffle(lines)
    prompt = ["<q>", *"".join(lines), names[-1], "?", "<think>"]
    response = [*("" if guesses else thought), "<answer>", *f"{value:02d}", "<eos>"]
    return [ID[symbol] for symbol in prompt], [ID[symbol] for symbol in response]


def demonstrations(count: int, seed: int, guessing: float = 0.0, slip: float = 0.0) -> Batch:
    """Some share only guesses; each step of a thought slips with the given probability."""
    draw = np.random.default_rng(seed)
    pairs = [demonstration(draw, bool(draw.random() < guessing), slip) for _ in range(count)]
    prompts, responses = zip(*pairs, strict=True)
    return Batch.of({PROMPT_TOKENS: list(prompts), TOKENS: list(responses)})
