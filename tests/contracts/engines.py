"""What the contract of the rollout engines asks of whoever enters one: a tiny model's folder in, an engine out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from megatron_rl.ports import RolloutEngine
from megatron_rl.reshard.digest import TransferError
from megatron_rl.reshard.sync import InProcessSync
from megatron_rl.reshard.transport import SyncReport
from megatron_rl.rollout.embedded import Embedded, EmbeddedEngine
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vocabulary import Vocabulary
from tests.fakes.tiny_models import TINY, tiny_folder
from tests.rollout.opening import asked, blueprint_of, words

CONTEXT = TINY["max_position_embeddings"]
VOCABULARY = TINY["vocab_size"]
END = (1,)
MAX_TOKENS = 24


class Contestant(Protocol):
    """An engine that draws from the model's own law, at most MAX_TOKENS, until END; its text is `words` of its tokens.

    It is opened without weights. `publish` may be called again and again, with folders of one shape.
    """

    engine: RolloutEngine
    refusal: str
    """What it said, once opened, to a `refusal`."""

    def publish(self, folder: Path, version: int) -> None:
        """The engine serves the weights of the folder under this version."""

    def fail_to_publish(self, version: int) -> None:
        """A sync of this version breaks off, with whatever error it does."""

    def stop_at(self, texts: Sequence[str]) -> None:
        """From here on these texts end a response too; none again where there are none."""

    def close(self) -> None: ...


def model_folder(folder: Path, seed: int = 0) -> Path:
    """A tiny model with a tokenizer that reads token 7 as "<7>"."""
    tiny_folder(folder, "qwen3", seed, tie_word_embeddings=True)
    tokenizer = Tokenizer(models.WordLevel({f"<{token}>": token for token in range(VOCABULARY)}, unk_token="<0>"))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<1>").save_pretrained(folder)
    return folder


def broken_folder(folder: Path) -> Path:
    """The same model with a norm that is not a number."""
    weights = model_folder(folder) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"].fill_(math.nan)
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


def refusal(engine: RolloutEngine) -> str:
    """What an engine says when it is asked for a rollout; empty where it writes one."""
    try:
        engine.generate(asked([[5]]))
    except RuntimeError as error:
        return str(error)
    return ""


class BreaksOff:
    """An exchange that is cut in the middle."""

    def run(self, version: int) -> SyncReport:
        raise TransferError(f"version {version}: the wire was cut")


class EmbeddedContestant:
    def __init__(self, folder: Path) -> None:
        vocabulary = Vocabulary(decode=words, end=END)
        sampling = SamplingSettings(max_tokens=MAX_TOKENS)
        self.engine: EmbeddedEngine = Embedded().open(blueprint_of(folder), vocabulary, sampling, torch.float32)
        self.refusal = refusal(self.engine)

    def publish(self, folder: Path, version: int) -> None:
        self.engine.load(folder)
        self.engine.serve(version)

    def fail_to_publish(self, version: int) -> None:
        sync = InProcessSync(exchange=BreaksOff(), serve=self.engine.serve, withhold=self.engine.withhold)
        with pytest.raises(TransferError):
            sync.publish(version)

    def stop_at(self, texts: Sequence[str]) -> None:
        self.engine.vocabulary = replace(self.engine.vocabulary, stop=tuple(texts))

    def close(self) -> None:
        self.engine.close()
