"""Operations that a model needs, counted as multiplications and additions of its matrices and its attention."""

from __future__ import annotations

from megatron_rl.actor.architecture import Architecture


def matrix_elements(architecture: Architecture) -> int:
    """Elements of the matrices that a token goes through, the chosen experts and the vocabulary included."""
    shape, routing = architecture.shape, architecture.routing
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    sparse = sum(shape.is_sparse(layer) for layer in range(shape.layers))
    total = shape.layers * attention + (shape.layers - sparse) * 3 * shape.hidden * shape.ffn
    if routing is not None:
        total += sparse * shape.hidden * (3 * routing.chosen * shape.expert_ffn + shape.experts)
    return total + shape.hidden * shape.vocabulary


def forward(architecture: Architecture, tokens: float, squares: float) -> float:
    """Operations of a forward pass over sequences with so many tokens, whose squared lengths add up to `squares`.

    Causal attention sees half of all pairs, in two products.
    """
    shape = architecture.shape
    return 2.0 * matrix_elements(architecture) * tokens + 2.0 * shape.layers * shape.heads * shape.head_dim * squares
