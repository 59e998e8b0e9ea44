from megatron_rl.actor.recompute import Recompute


def test_nothing_is_recomputed_unless_asked():
    assert Recompute().granularity == "none"
