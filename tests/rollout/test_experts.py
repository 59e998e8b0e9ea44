import pytest
import torch

from megatron_rl.rollout.experts import Choice, choose, mixed


def test_the_likeliest_experts_are_chosen_and_weigh_one_together_only_if_normalised():
    logits_NE = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 3.5]])
    whole, own = choose(logits_NE, 2, True), choose(logits_NE, 2, False)
    assert whole.expert_NC.tolist() == own.expert_NC.tolist() == [[1, 2], [2, 0]]
    torch.testing.assert_close(whole.weight_NC.sum(1), torch.ones(2))
    torch.testing.assert_close(
        own.weight_NC[0], torch.tensor([2.0, 1.0]).exp() / torch.tensor([0.0, 2.0, 1.0]).exp().sum()
    )
    torch.testing.assert_close(own.weight_NC / own.weight_NC.sum(1, keepdim=True), whole.weight_NC)


def test_answers_are_weighed_and_added_and_an_expert_that_nobody_chose_is_not_asked():
    choice = Choice(torch.tensor([[3, 0], [0, 1]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    asked = []

    def answer(expert, x):
        asked.append((expert, len(x)))
        return x * 10**expert

    summed = mixed(torch.tensor([[1.0], [2.0]]), choice, 5, answer)
    assert asked == [(0, 2), (1, 1), (3, 1)]
    torch.testing.assert_close(summed, torch.tensor([[0.25 * 1000 + 0.75], [0.5 * 2 + 0.5 * 20]]))


@pytest.mark.parametrize("crowd", [1, 2, 7, 50])
def test_a_token_gets_the_same_bits_whoever_else_is_sent_to_its_experts(crowd):
    generator = torch.Generator().manual_seed(crowd)
    x_NH, scale_E = torch.randn(64, 5, generator=generator), torch.randn(6, generator=generator)
    choice = choose(torch.randn(64, 6, generator=generator), 3, True)
    few = Choice(choice.expert_NC[:crowd], choice.weight_NC[:crowd])
    together, apart = (
        mixed(x_NH[: len(each.expert_NC)], each, 6, lambda expert, x: x * scale_E[expert]) for each in (choice, few)
    )
    assert torch.equal(together[:crowd], apart)
