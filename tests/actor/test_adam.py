from copy import deepcopy

import pytest
import torch

from megatron_rl.actor.adam import Adam

FIELDS = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def parameters() -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((3, 4), (5,), (1, 2))]


def test_it_moves_as_adamw_of_torch():
    ours, theirs = parameters(), parameters()
    optimizers = Adam([{"params": ours}], **FIELDS), torch.optim.AdamW(theirs, **FIELDS)
    for step in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = other.grad = torch.full_like(one, 0.1 * step) + one.detach() ** 2
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def test_the_step_stands_in_the_group_also_where_the_group_is_empty():
    optimizer = Adam([{"params": parameters()}, {"params": []}], **FIELDS)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert [group["step"] for group in optimizer.param_groups] == [1, 1]
    assert all(set(state) == {"exp_avg", "exp_avg_sq"} for state in optimizer.state.values())


def test_saving_and_loading_changes_no_later_step():
    def run(optimizer: Adam, values: list[torch.nn.Parameter]) -> None:
        for value in values:
            value.grad = value.detach() ** 2
        optimizer.step()

    one = parameters()
    first = Adam([{"params": one}], **FIELDS)
    run(first, one)
    two = [torch.nn.Parameter(value.detach().clone()) for value in one]
    second = Adam([{"params": two}], **FIELDS)
    second.load_state_dict(deepcopy(first.state_dict()))
    run(first, one)
    run(second, two)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_decay_through_the_gradient_is_refused():
    with pytest.raises(ValueError, match="adam_w_mode"):
        Adam([], adam_w_mode=False, **FIELDS)
