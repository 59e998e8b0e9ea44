from megatron_rl.planner.job import Engines, Job, Screen
from megatron_rl.planner.lengths import Lengths

LENGTHS = Lengths(mean=100, most=100, spread=0.0)


def test_rows_tokens_and_squares_by_hand():
    job = Job(prompts=4, samples=2, lengths=LENGTHS, prompt_tokens=10)
    assert (job.rows, job.written, job.longest) == (8, 8, 109)
    assert job.tokens == 8 * 109
    assert job.squares == 8 * 110**2


def test_screening_writes_more_than_it_learns_from():
    job = Job(prompts=16, samples=8, lengths=LENGTHS, screen=Screen(screened=64, first=4, more=20))
    assert job.rows == 16 * 24
    assert job.written == 64 * 4 + 16 * 20


def test_engines_take_the_gpus_of_all_their_groups():
    assert Engines(4, 3).gpus == 12
