from collections import Counter

from megatron_rl.batch.columns import EPOCH, GROUP, PROMPT_ID
from megatron_rl.ports import Context
from megatron_rl.samplers.uniform import Uniform
from tests.fakes.tabular import NumberedPrompts


def drawn(sampler: Uniform, waves: int, memory=None):
    batches = []
    for step in range(waves):
        context = Context(step=step, version=step, seed=0, machines={"prompts": NumberedPrompts(6)})
        batch, memory = sampler.draw(memory, context)
        batches.append(batch)
    return batches, memory


def test_every_prompt_comes_once_an_epoch():
    batches, _ = drawn(Uniform(prompts=4, samples=2), waves=3)
    count = Counter(prompt for batch in batches for prompt in batch[PROMPT_ID])
    assert set(count.values()) == {4}
    assert [batch[EPOCH].tolist() for batch in batches] == [[0] * 8, [0] * 4 + [1] * 4, [1] * 8]


def test_groups_are_numbered_on_and_on():
    batches, memory = drawn(Uniform(prompts=4, samples=2), waves=2)
    assert [sorted(set(batch[GROUP].tolist())) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert memory == {"drawn": 8}


def test_a_restart_draws_what_would_have_come_next():
    straight, _ = drawn(Uniform(prompts=4, samples=2), waves=3)
    _, memory = drawn(Uniform(prompts=4, samples=2), waves=2)
    context = Context(step=2, version=2, seed=0, machines={"prompts": NumberedPrompts(6)})
    again, _ = Uniform(prompts=4, samples=2).draw(memory, context)
    assert again == straight[2]


def test_unshuffled_it_follows_the_file():
    batches, _ = drawn(Uniform(prompts=3, samples=1, shuffle=False), waves=2)
    assert [batch[PROMPT_ID] for batch in batches] == [["p0", "p1", "p2"], ["p3", "p4", "p5"]]


def test_a_wave_may_be_larger_than_a_batch():
    (batch,), _ = drawn(Uniform(prompts=2, samples=1, wave=5), waves=1)
    assert len(batch) == 5
