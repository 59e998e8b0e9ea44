import pytest

from megatron_rl.planner.lengths import Lengths


@pytest.mark.parametrize(
    ("mean", "most", "spread"), [(300, 4096, 0.8), (3000, 4096, 0.8), (500, 8192, 1.4), (64, 64, 0.0)]
)
def test_the_mean_is_kept_and_the_limit_respected(mean, most, spread):
    drawn = Lengths(mean=mean, most=most, spread=spread).draw(2000)
    assert sum(drawn) / 2000 == pytest.approx(mean, rel=0.02)
    assert max(drawn) <= most


def test_a_wider_spread_has_a_longer_tail_and_more_cut_off():
    narrow, wide = (Lengths(mean=1000, most=4096, spread=spread) for spread in (0.4, 1.2))
    assert narrow.at(0.99) < wide.at(0.99)
    assert narrow.cut < wide.cut
    assert narrow.square < wide.square


def test_the_order_never_changes_and_is_not_sorted():
    lengths = Lengths(mean=100, most=1000)
    assert lengths.draw(50) == lengths.draw(50)
    assert lengths.draw(50) != sorted(lengths.draw(50))


def test_equal_lengths_need_no_spread():
    assert Lengths(mean=10, most=100, spread=0.0).draw(3) == [10, 10, 10]
    assert Lengths(mean=100, most=100, spread=0.0).cut == 1.0
