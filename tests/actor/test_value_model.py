from types import SimpleNamespace

import torch

from megatron_rl.actor.value_model import ValueHead

CONFIG = SimpleNamespace(sequence_parallel=False, hidden_size=3)


def test_a_new_head_claims_nothing():
    values, bias = ValueHead(CONFIG)(torch.ones(4, 1, 3))
    assert values.shape == (4, 1, 1)
    assert values.abs().sum() == 0
    assert bias is None


def test_a_value_is_the_product_of_hidden_state_and_weight():
    head = ValueHead(CONFIG)
    head.weight.data = torch.tensor([[1.0, 2.0, 3.0]])
    values, _ = head(torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0]]]), runtime_gather_output=None)
    assert values.flatten().tolist() == [1.0, 5.0]
