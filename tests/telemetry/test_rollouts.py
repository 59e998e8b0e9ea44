import pytest

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import TOKENS
from megatron_rl.telemetry.points import Totals
from megatron_rl.telemetry.rollouts import RolloutFiles, read_pieces, rollout_files
from megatron_rl.telemetry.sink import RunFacts
from tests.fakes.run_folder import WORDS, piece, rollout_batch, step_record


def write(folder, steps, after=0, **options):
    sink = RolloutFiles(**options)
    sink.start(RunFacts(folder=folder, step=after, steps=9, piece=piece))
    for step in steps:
        batch = rollout_batch(step, groups=1)
        sink.step(Totals().point(step_record(step), batch, tokens=1), batch)


def test_a_step_leaves_its_whole_batch(tmp_path):
    write(tmp_path, [7])
    assert Batch.read_parquet(tmp_path / "rollouts" / "step_000007.parquet") == rollout_batch(7, groups=1)


def test_no_half_written_file_remains(tmp_path):
    write(tmp_path, [1])
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == ["pieces.json", "step_000001.parquet"]


def test_every_thins_and_keep_prunes(tmp_path):
    write(tmp_path / "thin", range(1, 10), every=3)
    assert list(rollout_files(tmp_path / "thin")) == [3, 6, 9]
    write(tmp_path / "pruned", range(1, 10), every=2, keep=2)
    assert list(rollout_files(tmp_path / "pruned")) == [6, 8]


def test_a_resume_removes_the_steps_it_will_make_again(tmp_path):
    write(tmp_path, [1, 2, 3])
    write(tmp_path, [], after=1)
    assert list(rollout_files(tmp_path)) == [1]


def test_the_text_of_every_token_seen_is_kept_beside(tmp_path):
    write(tmp_path, [1])
    write(tmp_path, [2], after=1)
    seen = {token for step in (1, 2) for token in rollout_batch(step, groups=1).ragged(TOKENS).values.tolist()}
    assert read_pieces(tmp_path / "rollouts") == {token: WORDS[token] for token in seen}


def test_options_that_keep_nothing_are_refused():
    with pytest.raises(ValueError, match="every=0"):
        RolloutFiles(every=0)


@pytest.mark.parametrize("said", ["[1]", '{"a": "b"}', "{", "[" * 100_000])
def test_texts_of_tokens_that_no_run_wrote_are_named(tmp_path, said):
    (tmp_path / "pieces.json").write_text(said)
    with pytest.raises(ValueError, match=r"pieces\.json is no mapping of token ids to texts"):
        read_pieces(tmp_path)
