import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_rl.batch.columns import ANSWER, SOURCE
from megatron_rl.data.convert import convert
from megatron_rl.data.prompts import DataSettings, PromptSet
from megatron_rl.data.tiny_model import tiny_tokenizer
from megatron_rl.data.tokenizer import Template
from tests.data.test_published import ROWS, VERL_ROW

PARQUET = ("gsm8k", "math", "dapo17k", "numina", "knights_jspo", "amc23", "aime24")
"""The sets whose published files are parquet; deepscaler is JSON, the others are JSON lines."""


def published_file(folder, name, rows):
    if name in PARQUET:
        path = folder / "train-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name == "deepscaler":
        path = folder / "deepscaler.json"
        path.write_text(json.dumps(rows))
    else:
        path = folder / "test.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("name", ROWS)
def test_every_converters_output_passes_the_reader(name, tmp_path, monkeypatch):
    fields, _, answer = ROWS[name]
    found = convert(name, published_file(tmp_path, name, [fields]), tmp_path / "out" / "prompts.parquet")
    assert (found.written, found.duplicates, found.issues) == (1, 0, ())
    monkeypatch.setattr(Template, "tokens", lambda _, texts, __: [[1] * len(text) for text in texts])
    files = (tmp_path / "out",)
    prompts = PromptSet.read(files, tiny_tokenizer(), DataSettings(train=files, chat="never", strict=True))
    batch = prompts.take([0])
    assert batch.strings(ANSWER) == [answer]
    assert batch.strings(SOURCE)[0]


def test_copies_are_left_out(tmp_path):
    rows = [
        VERL_ROW | {"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": "3"}}
        for text in "abcabcabca"
    ]
    found = convert("dapo17k", published_file(tmp_path, "dapo17k", rows), tmp_path / "prompts.parquet")
    assert (found.written, found.duplicates) == (3, 7)


def test_copies_with_another_answer_are_counted(tmp_path):
    rows = [{"problem": "Q", "answer": answer} for answer in "334"]
    found = convert("math500", published_file(tmp_path, "math500", rows), tmp_path / "prompts.parquet")
    assert str(found) == "1 prompts written, 2 duplicates (1 with another answer) and 0 malformed left out"


def test_a_problem_that_is_bytes_is_no_problem(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"question": [b"Q", b"R"], "answer": ["#### 1", "#### 2"]}), path)
    with pytest.raises(ValueError, match="needs text in 'question', got b'Q'"):
        convert("gsm8k", path, tmp_path / "prompts.parquet")


def test_a_malformed_row_is_reported_with_file_row_and_reason_and_the_rest_is_written(tmp_path):
    path = published_file(tmp_path, "math500", [ROWS["math500"][0], {"problem": "no answer"}])
    path.write_text(path.read_text() + "\n{broken\n")
    found = convert("math500", path, tmp_path / "prompts.parquet")
    assert found.written == 1
    first, second = str(found).splitlines()[1:]
    assert first.startswith(f"{path} row 2: needs 'solution'")
    assert second.startswith(f"{path} row 3: is no JSON")


def test_strict_stops_at_the_first_malformed_row_and_writes_nothing(tmp_path):
    path = published_file(tmp_path, "math500", [ROWS["math500"][0], {"problem": "no answer"}])
    with pytest.raises(ValueError, match="row 2: needs"):
        convert("math500", path, tmp_path / "prompts.parquet", strict=True)
    assert not (tmp_path / "prompts.parquet").exists()


def test_a_file_of_another_set_is_refused_with_its_first_row(tmp_path):
    path = published_file(tmp_path, "gsm8k", [ROWS["gsm8k"][0]])
    with pytest.raises(ValueError, match=r"gave no prompt of 'knights'; the first row: .* needs 'quiz', has"):
        convert("knights", path, tmp_path / "prompts.parquet")


def test_an_unknown_name_tells_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"no converter 'gsmk'; did you mean 'gsm8k'\? Known: aime24, .*numina"):
        convert("gsmk", tmp_path, tmp_path / "prompts.parquet")
