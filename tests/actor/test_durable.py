import os
import queue
import random
import threading
import time
from io import BufferedWriter

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_rl.actor import durable
from megatron_rl.actor.durable import PIECE, InPieces, flushing, replacing
from megatron_rl.actor.safetensors_folder import SINGLE
from megatron_rl.spec.schema import SpecError


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"old": torch.zeros(1)}, folder / SINGLE)

    def die_halfway() -> None:
        with replacing(folder) as aside:
            save_file({"new": torch.zeros(1)}, aside / SINGLE)
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        die_halfway()
    assert set(load_file(folder / SINGLE)) == {"old"}
    with replacing(folder) as aside:
        save_file({"new": torch.zeros(1)}, aside / SINGLE)
    assert set(load_file(folder / SINGLE)) == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_death_between_the_renames_costs_neither_the_old_folder_nor_the_next_try(tmp_path):
    folder = tmp_path / "model"
    for name in (".model.old", ".model.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "origin").write_text(name)

    def die_at_once() -> None:
        with replacing(folder):
            raise RuntimeError("at once")

    with pytest.raises(RuntimeError, match="at once"):
        die_at_once()
    assert (folder / "origin").read_text() == ".model.old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_written_goes_to_disk_while_more_is_written(tmp_path, monkeypatch):
    seen = {"first": threading.Event(), "second": threading.Event()}

    def note(path):
        seen[path.name].set()

    monkeypatch.setattr(durable, "PAUSE_S", 0.001)
    monkeypatch.setattr(durable, "sync", note)
    with flushing(tmp_path):
        (tmp_path / "first").write_text("1")
        assert seen["first"].wait(60)
        (tmp_path / "second").write_text("2")
        assert seen["second"].wait(60)


def test_what_is_written_into_a_file_of_its_full_size_goes_to_disk_too(tmp_path, monkeypatch):
    contents: queue.Queue[bytes] = queue.Queue()
    monkeypatch.setattr(durable, "PAUSE_S", 0.001)
    monkeypatch.setattr(durable, "sync", lambda path: contents.put(path.read_bytes()))
    with flushing(tmp_path), (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"..")
        while contents.get(timeout=60) != b"..":
            continue
        time.sleep(0.05)  # the clock of files is coarse
        os.pwrite(file.fileno(), b"x", 0)
        while contents.get(timeout=60) != b"x.":
            continue


def test_an_error_of_the_disk_is_raised_and_leaves_nothing(tmp_path, monkeypatch):
    failed = threading.Event()

    def fail(path):
        failed.set()
        raise OSError(5, "Input/output error")

    def write() -> None:
        with replacing(tmp_path / "model") as aside:
            (aside / "file").write_text("1")
            assert failed.wait(60)

    monkeypatch.setattr(durable, "PAUSE_S", 0.001)
    monkeypatch.setattr(durable, "sync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write()
    assert not list(tmp_path.iterdir())


def test_two_who_write_the_same_folder_do_not_meet(tmp_path):
    folder = tmp_path / "model"
    with replacing(folder) as aside:
        (aside / "mine").write_text("1")
        with pytest.raises(SpecError, match=r"another process is writing .*model; wait for it"), replacing(folder):
            pass
        assert (aside / "mine").exists()
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_a_folder_that_cannot_take_its_place_leaves_nothing_aside(tmp_path):
    (tmp_path / "model").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError), replacing(tmp_path / "model") as aside:  # whatever the system says
        (aside / "mine").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_large_write_goes_out_in_pieces_and_arrives_whole(tmp_path):
    content = random.Random(7).randbytes(2 * PIECE + 5)
    with InPieces(tmp_path / "raw", "w") as file:
        assert file.write(content) == PIECE
    with BufferedWriter(InPieces(tmp_path / "buffered", "w")) as file:
        file.write(b"head")
        file.write(memoryview(content))
    assert (tmp_path / "buffered").read_bytes() == b"head" + content
