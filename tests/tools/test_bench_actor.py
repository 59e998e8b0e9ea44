from tests import ranks
from tools.bench_actor import compare


def test_the_table_holds_the_actor_beside_plain_pytorch():
    ((heading, plain, *ours),) = ranks.run(compare, world=1, rows=4, steps=3, even=False)
    assert heading == "301,920 parameters, 4 rollouts a step, 1 thread"
    assert plain.startswith("plain PyTorch")
    assert plain.endswith("1.00 of plain")
    assert [line.split("  ")[0] for line in ours] == ["actor, distributed optimizer", "actor, plain optimizer"]
