"""vLLM in the contract of the rollout engines: one group of one rank, fed as a one-rank actor feeds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_rl.reshard.digest import TransferError
from tests.contracts.engines import END, MAX_TOKENS, refusal
from tests.rollout.serving import Serving


class VllmContestant:
    def __init__(self, folder: Path, logs: Path) -> None:
        # A stop text from the start makes vLLM read the tokenizer, which later ones need.
        self.serving = Serving(folder, logs, end=END, max_tokens=MAX_TOKENS, stop=("never",))
        self.engine = self.serving.engine
        self.refusal = refusal(self.engine)

    def publish(self, folder: Path, version: int) -> None:
        self.serving.version = version - 1
        self.serving.publish(folder)

    def fail_to_publish(self, version: int) -> None:
        delivery = self.engine.begin(version)
        self.serving.send(delivery, version + 1)
        with pytest.raises(TransferError):
            self.engine.finish(version)

    def stop_at(self, texts: Sequence[str]) -> None:
        self.engine.vocabulary = replace(self.engine.vocabulary, stop=tuple(texts))

    def close(self) -> None:
        self.engine.close()
