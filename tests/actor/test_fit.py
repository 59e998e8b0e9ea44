import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.fit import check
from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.layout import LayoutError

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 8,
    "vocab_size": 8,
    "hidden_size": 24,
    "intermediate_size": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("cut", "sentence"),
    [
        ({"tp": 4}, r"6 attention heads do not divide over actor.tp = 4"),
        ({"tp": 2}, r"3 key-value heads are neither a multiple nor a divisor of actor.tp = 2"),
        ({"pp": 3}, r"8 layers do not divide over pp\*vpp = 3 chunks"),
        ({"dp": 2, "ep": 2}, r"llama has no experts"),
    ],
)
def test_each_refusal_of_a_cut_says_what_does_not_divide(cut, sentence):
    with pytest.raises(LayoutError, match=sentence):
        check(describe(CONFIG), Parallel(**cut))


def test_a_cut_that_divides_is_accepted():
    check(describe(CONFIG), Parallel(tp=3, pp=2, vpp=2, dp=5, cp=2))
