from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.settings import ActorSettings


def test_the_cut_over_ranks_stands_at_the_top_level():
    settings = ActorSettings(tp=2, pp=2)
    assert isinstance(settings, Parallel)
    assert settings.world == 4
