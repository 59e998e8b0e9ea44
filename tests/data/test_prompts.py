import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers.processors import TemplateProcessing

from megatron_rl.batch.columns import ANSWER, EXTRA, PROMPT_ID, PROMPT_TEXT, PROMPT_TOKENS, REFERENCE_REWARDS, SOURCE
from megatron_rl.data.prompt_file import Prompt, prompt_id, user, write_prompts
from megatron_rl.data.prompts import DataSettings, PromptSet
from megatron_rl.data.tiny_model import tiny_tokenizer
from megatron_rl.drawing import requests
from megatron_rl.ports import Context
from tests.data.test_tokenizer import CHAT


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def read(tokenizer, *files, **settings):
    return PromptSet.read(files, tokenizer, DataSettings(train=files, **settings))


def test_own_files_verls_and_slimes_are_read_together(tmp_path, tokenizer):
    own, verl = tmp_path / "own.parquet", tmp_path / "verl.parquet"
    write_prompts(own, [Prompt(prompt="a ?", answer="1", source="own", extra={"level": 2})])
    row = {"data_source": "v", "prompt": user("b ?"), "reward_model": {"style": "rule", "ground_truth": "2"}}
    pq.write_table(pa.Table.from_pylist([row | {"extra_info": {"index": "i-1"}}]), verl)
    slime = lines(tmp_path / "slime.jsonl", {"prompt": user("c ?"), "label": 3})
    batch = read(tokenizer, own, verl, slime).take([2, 0, 1, 0])
    assert batch.strings(PROMPT_TEXT) == ["<q> c ? <think>", "a ?", "<q> b ? <think>", "a ?"]
    assert batch.strings(ANSWER) == ["3", "1", "2", "1"]
    assert batch.strings(SOURCE) == ["slime", "own", "v", "own"]
    assert json.loads(batch.strings(EXTRA)[2]) == {"index": "i-1"}
    assert batch.strings(PROMPT_ID)[1] == prompt_id("own", "a ?")
    assert batch.ragged(PROMPT_TOKENS).row(1).tolist() == tokenizer("a ?")["input_ids"]
    assert batch.ragged(PROMPT_TOKENS).row(0).tolist() == tokenizer("<q> c ? <think>")["input_ids"]


def test_duplicates_stay_once_and_are_counted(tmp_path, tokenizer):
    rows = [{"prompt": "a", "label": "1"}, {"prompt": "b", "label": "2"}, {"prompt": "a", "label": "1"}]
    found = read(tokenizer, lines(tmp_path / "x.jsonl", *rows, {"prompt": "a", "label": "9"}))
    assert found.take(range(len(found))).strings(ANSWER) == ["1", "2"]
    assert (found.omitted.duplicates, found.omitted.conflicting) == (2, 1)
    assert str(found.omitted) == "left out: 2 duplicates, 1 of them with another answer"


def test_longer_prompts_are_left_out_and_counted(tmp_path, tokenizer):
    found = read(
        tokenizer,
        lines(tmp_path / "x.jsonl", {"prompt": "a 1 2", "label": "1"}, {"prompt": "b", "label": "2"}),
        max_prompt_tokens=2,
    )
    assert found.take([0]).strings(PROMPT_TEXT) == ["b"]
    assert found.longest == 1
    assert found.omitted.too_long == 1


def test_a_malformed_row_is_reported_and_stops_nothing_unless_strict(tmp_path, tokenizer):
    path = lines(tmp_path / "x.jsonl", {"prompt": "a", "label": "1"}, "{", {"prompt": "b", "label": ""})
    found = read(tokenizer, path)
    assert list(found.ids) == [prompt_id("x", "a")]
    assert [(issue.row, issue.reason[:12]) for issue in found.omitted.issues] == [
        (2, "is no JSON ("),
        (3, "the referenc"),
    ]
    assert f"2 malformed; the first malformed: {path} row 2: is no JSON" in str(found.omitted)
    with pytest.raises(ValueError, match=r"row 2: is no JSON.*data\.strict"):
        read(tokenizer, path, strict=True)


def test_no_prompt_left_is_an_error_that_says_why(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"no prompt is left of .*: 1 rows are malformed"):
        read(tokenizer, lines(tmp_path / "x.jsonl", "{"))


def test_special_tokens_are_added_to_text_but_not_to_what_a_template_rendered(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    found = read(
        tokenizer, lines(tmp_path / "x.jsonl", {"prompt": "a", "label": "1"}, {"prompt": user("a"), "label": 2})
    )
    text, messages = found.take([0]), found.take([0])
    assert len(found) == 1, "text and a lone user message of one text are one prompt"
    assert text.ragged(PROMPT_TOKENS).row(0)[0] == 1
    rendered = read(tokenizer, lines(tmp_path / "x.jsonl", {"prompt": user("a"), "label": 2}))
    assert rendered.take([0]).ragged(PROMPT_TOKENS).row(0)[0] == tokenizer.convert_tokens_to_ids("<q>")
    assert messages == text


def test_samplers_draw_from_it(tmp_path, tokenizer):
    found = read(tokenizer, lines(tmp_path / "x.jsonl", {"prompt": "a", "label": "1"}, {"prompt": "b", "label": "2"}))
    context = Context(step=0, version=0, seed=0, machines={"prompts": found})
    batch = requests(context, [(0, 1), (0, 0)], samples=2, first_group=0)
    assert batch.strings(ANSWER) == ["2", "2", "1", "1"]


def test_values_come_with_what_they_cost_and_what_they_leave_out(tmp_path, tokenizer):
    rows = [{"prompt": name, "label": "1"} for name in "abc"]
    found = read(tokenizer, lines(tmp_path / "x.jsonl", *rows))
    first, second, third = found.ids
    rewards = {first: [1.0, 0.0], second: [0.0, 0.0], third: [0.0, 1.0, 0.0]}
    solvable = found.with_values(rewards, solvable=True)
    assert (solvable.ids, solvable.omitted.unsolved) == ([first, third], 1)
    assert solvable.take([1, 0]).ragged(REFERENCE_REWARDS).row(0).tolist() == [0.0, 1.0, 0.0]
    asked = requests(Context(step=0, version=0, seed=0, machines={"prompts": solvable}), [(0, 1)], 2, first_group=0)
    assert asked.metrics == {"values/rollouts": 7.0, "values/left_out_share": pytest.approx(1 / 3)}
    assert found.with_values(rewards, solvable=False).take([0]).metrics["values/left_out_share"] == 0.0
    with pytest.raises(ValueError, match="have no rewards"):
        found.with_values({first: [1.0]}, solvable=True)
    with pytest.raises(ValueError, match="solved no prompt"):
        found.with_values({name: [0.0] for name in found.ids}, solvable=True)


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt"])
def test_what_each_prompt_gives_its_template_is_not_set_by_a_run(name):
    with pytest.raises(ValueError, match=rf"template has {name}, which each prompt gives; leave it out"):
        DataSettings(train=(), template={name: True, "enable_thinking": False})


def test_prompts_are_known_by_all_that_a_run_sees_of_them(tmp_path, tokenizer):
    rows = [{"prompt": "2 + 2 ?", "label": 4, "metadata": {"level": 1}}, {"prompt": "1 + 1 ?", "label": 2}]
    known = read(tokenizer, lines(tmp_path / "a.jsonl", *rows)).identity
    assert known.startswith("2 prompts, sha256 ")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert read(tokenizer, lines(elsewhere / "a.jsonl", *rows)).identity == known
    others = [rows[::-1], rows[:1], [rows[0] | {"label": 5}, rows[1]], [rows[0] | {"metadata": {"level": 2}}, rows[1]]]
    assert len({known, *(read(tokenizer, lines(tmp_path / "b.jsonl", *other)).identity for other in others)}) == 5
