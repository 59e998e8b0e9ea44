"""The Hugging Face folder of a tiny model: a word-level tokenizer for chained arithmetic, 0.4 M random parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer as WordTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from megatron_rl.data.arithmetic import END, LETTERS, OPERATORS

PAD: Final = "<pad>"
WORDS: Final = (PAD, END, "<q>", "<think>", "<answer>", ";", "?", *OPERATORS, *"0123456789", *LETTERS)
VOCABULARY: Final = 64
"""The words, padded so that any tensor-parallel size divides it."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word. Padding words exist too, so that any token a model may write has a text."""
    padding = [f"<unused{number}>" for number in range(VOCABULARY - len(WORDS))]
    words = WordTokenizer(WordLevel({word: place for place, word in enumerate([*WORDS, *padding])}))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False, model_max_length=256
    )


def tiny_config() -> Qwen3Config:
    """Qwen3's shape, cut evenly by two ranks or stages. Heads have dimension 32, the smallest vLLM serves on a CPU."""
    tokenizer = tiny_tokenizer()
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=192,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        # About 1/sqrt(fan-in): at the library's 0.02 a model this small needs thousands of steps before it moves.
        initializer_range=0.06,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )


def write_tiny_model(folder: Path, seed: int) -> Path:
    """The folder, now with config, tokenizer and random float32 weights; the same seed writes the same bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(tiny_config()).to(torch.float32)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
