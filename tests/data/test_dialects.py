import contextlib
import copy
import random

import pytest

from megatron_rl.data.dialects import answer_text, read_prompt
from megatron_rl.data.prompt_file import user
from megatron_rl.data.records import Record


def read(**fields):
    return read_prompt(Record("train.jsonl", 0, fields))


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": user("2 + 2?"),
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"split": "train", "index": 7, "answer": None},
}


def test_a_row_of_verl_is_read_unmodified():
    prompt = read(**VERL)
    assert (prompt.prompt, prompt.answer, prompt.source) == (user("2 + 2?"), "4", "openai/gsm8k")
    assert prompt.extra == {"split": "train", "index": 7}


@pytest.mark.parametrize("truth", [34, 34.0, "34", " 34\n"])
def test_a_number_like_truth_is_text(truth):
    assert read(**(VERL | {"reward_model": {"ground_truth": truth}})).answer == "34"


@pytest.mark.parametrize("index", [3, "3", "a-uuid", None])
def test_any_index_is_read(index):
    assert read(**(VERL | {"extra_info": {"index": index}})).extra.get("index") == index


def test_a_line_of_slime_or_dapo_is_read_unmodified():
    assert read(prompt=user("2 + 2?"), label="4").answer == "4"
    text = read(prompt="2 + 2?", label=4, metadata={"level": 1})
    assert (text.prompt, text.answer, text.source, text.extra) == ("2 + 2?", "4", "train", {"level": 1})


def test_an_own_row_keeps_its_identity():
    prompt = read(prompt_id="x", prompt="p", source="s", answer="a", extra='{"level": 3}')
    assert (prompt.identity, prompt.source, prompt.extra) == ("x", "s", {"level": 3})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"question": "2 + 2?"}, r"has the fields \['question'\], but none of"),
        (VERL | {"prompt": []}, "'prompt' must be text or messages"),
        (VERL | {"prompt": [{"role": "user"}]}, "'prompt' must be text or messages"),
        (VERL | {"reward_model": {"style": "rule"}}, "'reward_model' must hold"),
        (VERL | {"reward_model": {"ground_truth": ""}}, "answer is empty"),
        (VERL | {"reward_model": {"ground_truth": None}}, "answer is empty"),
        (VERL | {"reward_model": {"ground_truth": float("nan")}}, "answer is nan"),
        (VERL | {"prompt": user("half a \ud800 pair")}, "surrogates not allowed"),
        (VERL | {"extra_info": "x"}, "must be a mapping"),
        ({"prompt": "p", "answer": "a", "extra": "{"}, "Expecting"),
        ({"prompt": " ", "label": "a"}, "'prompt' must be text"),
        ({"prompt": "p", "label": b"a"}, "is bytes, not text"),
        ({"prompt": "p", "label": [None, {"a": None}]}, "answer is empty"),
        ({"prompt": "p", "label": []}, "answer is empty"),
        ({"prompt": "p", "answer": "a", "extra": "[" * 100_000}, "nested too deeply"),
        ({"prompt": "p", "answer": "a", "prompt_id": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_what_is_missing_is_said(fields, said):
    with pytest.raises(ValueError, match=said):
        read(**fields)


def test_a_list_of_answers_is_json():
    assert answer_text(["a", "ö"]) == '["a", "ö"]'
    assert answer_text(0.5) == "0.5"
    assert answer_text(False) == "False"


def test_rows_broken_at_random_are_told_and_nothing_else_happens():
    wrong = [None, "", 0, 1.5, [], {}, [None], ["x"], {"a": 1}, "\0", float("inf"), 10**400, "\ud800", b"x"]
    rng = random.Random(0)
    for fields in [
        VERL,
        {"prompt": "p", "label": "1"},
        {"prompt_id": "i", "prompt": "p", "answer": "1", "extra": "{}"},
    ]:
        for _ in range(300):
            broken = copy.deepcopy(fields)
            key = rng.choice(list(broken))
            inner = broken[key] if isinstance(broken[key], dict) and rng.random() < 0.5 else broken
            inner[rng.choice(list(inner))] = rng.choice(wrong)
            with contextlib.suppress(ValueError):
                assert read(**broken).answer
