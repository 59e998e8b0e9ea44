import json

import pyarrow.parquet as pq

from megatron_rl.data.prompt_file import Prompt, prompt_id, user, write_prompts


def prompt(text="2 + 2?", answer="4", **more):
    return Prompt(prompt=text, answer=answer, source="toy", **more)


def test_identity_is_source_and_text_and_nothing_else():
    assert prompt_id("toy", "2 + 2?") == prompt_id("toy", user("2 + 2?")) == "cfd072ef84197009"
    assert prompt_id("toy", "2 + 2?") != prompt_id("other", "2 + 2?")
    assert prompt_id("toy", user("a")) != prompt_id("toy", [{"role": "system", "content": "s"}, *user("a")])
    assert prompt(answer="4", extra={"a": 1}).identity == prompt(answer="5").identity
    assert prompt(prompt_id="mine").identity == "mine"


def test_of_rows_with_one_identity_the_first_is_written(tmp_path):
    assert write_prompts(tmp_path / "p.parquet", [prompt("a", "1"), prompt("b", "2"), prompt("a", "3")]) == 2
    assert pq.read_table(tmp_path / "p.parquet")["answer"].to_pylist() == ["1", "2"]


def test_text_stays_text_and_a_mixture_becomes_messages(tmp_path):
    write_prompts(tmp_path / "text.parquet", [prompt("a"), prompt("b")])
    assert pq.read_table(tmp_path / "text.parquet")["prompt"].to_pylist() == ["a", "b"]
    write_prompts(tmp_path / "new" / "mixed.parquet", [prompt("a"), prompt(user("b"))])
    assert pq.read_table(tmp_path / "new" / "mixed.parquet")["prompt"].to_pylist() == [user("a"), user("b")]


def test_extra_is_a_json_object(tmp_path):
    write_prompts(tmp_path / "p.parquet", [prompt(extra={"level": 3, "names": ["Ö"]})])
    assert json.loads(pq.read_table(tmp_path / "p.parquet")["extra"][0].as_py()) == {"level": 3, "names": ["Ö"]}
