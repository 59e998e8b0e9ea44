import gzip
import os

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
    assert str(record.issue("is empty")) == f"{tmp_path}/x.jsonl row 1: is empty"


@pytest.mark.parametrize(("name", "said"), [("x.csv", "no data file"), ("x.jsonl", "there is no data file")])
def test_what_cannot_be_read_is_named(tmp_path, name, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        list(read_records(tmp_path / name))


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no"):
        list(read_records(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_is_read_whatever_mark_it_begins_with(tmp_path, encoding):
    (tmp_path / "x.json").write_text('[{"a": "ö"}]', encoding=encoding)
    assert [record.fields for record in read_records(tmp_path / "x.json")] == [{"a": "ö"}]


def test_lines_may_begin_with_a_mark_and_end_as_on_windows(tmp_path):
    (tmp_path / "x.jsonl").write_bytes('{"a": 1}\r\n\r\n{"a": "ö"}\r\n'.encode("utf-8-sig"))
    assert [(record.row, record.fields["a"]) for record in read_records(tmp_path / "x.jsonl")] == [(0, 1), (2, "ö")]


def test_bytes_that_are_no_text_cost_their_row_alone(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xe9"}\n{"a": 1}\n')
    torn, whole = read_records(tmp_path / "x.jsonl")
    assert (torn.unreadable[:10], whole.fields) == ("is no JSON", {"a": 1})
    column = pa.array([b"one", b"\xe9", b"three"]).view(pa.string())
    pq.write_table(pa.table({"a": column}), tmp_path / "x.parquet")
    found = list(read_records(tmp_path / "x.parquet"))
    assert [record.fields.get("a") for record in found] == ["one", None, "three"]
    assert (found[1].row, found[1].unreadable[:10]) == (1, "is no text")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_json_that_python_will_not_read_costs_its_row_alone(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(f'{line}\n{{"a": 1}}\n')
    broken, whole = read_records(tmp_path / "x.jsonl")
    assert (broken.row, broken.unreadable[:10], whole.fields) == (0, "is no JSON", {"a": 1})


def test_a_list_that_breaks_off_is_one_complaint(tmp_path):
    (tmp_path / "x.json").write_text('[\n{"a": 1},\n{"a": 2},\n{"a":\n')
    (broken,) = read_records(tmp_path / "x.json")
    assert "nor can the rows of this list be told apart" in broken.unreadable


@pytest.mark.parametrize("held", [b"", b"PAR1 and no more"])
def test_a_broken_parquet_file_does_not_stop_those_after_it(tmp_path, held):
    (tmp_path / "a.parquet").write_bytes(held)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b.parquet")
    broken, whole = read_records(tmp_path)
    assert (broken.file, broken.row) == (str(tmp_path / "a.parquet"), 0)
    assert broken.unreadable.startswith("cannot be read as Parquet")
    assert whole.fields == {"a": 1}


def test_packed_files_are_told_of_instead_of_passed_over(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}'))
    (tmp_path / "b.jsonl").write_text('{"a": 2}')
    packed, read = read_records(tmp_path)
    assert "unpack the file first" in packed.unreadable
    assert read.fields == {"a": 2}


@pytest.mark.parametrize("name", ["pipe.jsonl", "zero.jsonl"])
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{name} is a pipe or a device"):
        next(read_records(tmp_path / name))
    with pytest.raises(ValueError, match="holds no"):
        next(read_records(tmp_path))
