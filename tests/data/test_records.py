import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_rl.data.records import read_records


def test_every_format_gives_its_rows_with_their_numbers(tmp_path):
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "one.parquet")
    (tmp_path / "two.jsonl").write_text('{"a": 3}\n\n{"a": 4}\n')
    (tmp_path / "three.json").write_text('[{"a": 5}, {"a": 6}]')
    (tmp_path / "four.json").write_text('{"a": 7}')
    (tmp_path / "five.json").write_text('{"a": 8}\n{"a": 9}\n')
    found = {
        name: [(record.row, record.fields["a"]) for record in read_records(tmp_path / name)]
        for name in ("one.parquet", "two.jsonl", "three.json", "four.json", "five.json")
    }
    assert found == {
        "one.parquet": [(0, 1), (1, 2)],
        "two.jsonl": [(0, 3), (2, 4)],
        "three.json": [(0, 5), (1, 6)],
        "four.json": [(0, 7)],
        "five.json": [(0, 8), (1, 9)],
    }


def test_a_folder_gives_its_files_in_order(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"a": 2}')
    (tmp_path / "a.jsonl").write_text('{"a": 1}')
    (tmp_path / "notes.txt").write_text("no data")
    assert [record.fields["a"] for record in read_records(tmp_path)] == [1, 2]


def test_a_line_that_is_no_json_is_told_and_does_not_stop_the_rest(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": \n[3]\n{"a": 4}\n')
    first, broken, no_mapping, last = read_records(tmp_path / "x.jsonl")
    assert (first.fields, last.fields) == ({"a": 1}, {"a": 4})
    assert broken.row == 1
    assert broken.unreadable.startswith("is no JSON")
    assert "list, not a mapping" in no_mapping.unreadable


def test_an_issue_says_file_row_and_reason(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}")
    record = next(read_records(tmp_path / "x.jsonl"))
    assert str(record.issue("is empty")) == f"{tmp_path}/x.jsonl row 0: is empty"


@pytest.mark.parametrize(("name", "said"), [("x.csv", "no data file"), ("x.jsonl", "there is no data file")])
def test_what_cannot_be_read_is_named(tmp_path, name, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        list(read_records(tmp_path / name))


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no"):
        list(read_records(tmp_path))
