"""The language model with a value where the vocabulary was, one for each token. H hidden, S tokens of a shard."""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class ValueHead(torch.nn.Module):
    """Values (S, 1, 1) of hidden states (S, 1, H). It starts at zero, so that a new critic claims nothing."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.sequence_parallel = config.sequence_parallel
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size))
        # Each tensor rank sees its own tokens only, and Megatron adds up the gradients of what is marked so.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden_S1H: Tensor, **_: object) -> tuple[Tensor, None]:
        """Values and no bias, as Megatron's output layer would return logits and no bias."""
        values_S11 = torch.nn.functional.linear(hidden_S1H, self.weight.to(hidden_S1H.dtype))
        if self.sequence_parallel:
            # What follows is the same on every tensor rank, so each takes its own tokens' gradient and adds nothing.
            values_S11 = gather_from_sequence_parallel_region(values_S11, tensor_parallel_output_grad=False)
        return values_S11, None


class ValueModel(GPTModel):
    """A GPT that ends in a `ValueHead`; there is no output layer to tie the embedding to."""

    def __init__(self, **given: Any) -> None:  # noqa: ANN401  # Megatron's own arguments, handed through
        super().__init__(**{**given, "share_embeddings_and_output_weights": False})
        if self.post_process:
            self.output_layer = ValueHead(self.config)
