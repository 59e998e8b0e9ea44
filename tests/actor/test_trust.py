"""A checkpoint that would call something when it is loaded, at every place where Megatron and torch unpickle."""

import io
import json
import pickle
import re
import shutil
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import make_dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from megatron_rl.actor import saving, trust
from megatron_rl.actor.distributed_folder import Reader
from megatron_rl.spec.schema import SpecError
from tests import ranks
from tests.actor.saving_programs import learner, save_fresh
from tests.actor.test_pickled import Canary, saved
from tests.actor.test_unfolding import LAUGHS, tuples
from tests.fakes.tiny_models import tiny_folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trust")
    folder = tiny_folder(root / "model", "llama", num_hidden_layers=2)
    ranks.run(save_fresh, world=1, folder=folder, to=root / "good", parallel={})
    return root


def contents_of(folder: Path) -> Metadata:
    return FileSystemReader(folder).read_metadata()


def first_object(metadata: Metadata) -> object:
    return next(
        index
        for index in metadata.storage_data
        if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata)
    )


def in_contents(folder: Path, canary: Canary) -> None:
    metadata = contents_of(folder)
    metadata.planner_data = canary
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def in_common(folder: Path, canary: Canary) -> None:
    (folder / "common.pt").write_bytes(saved({"content_metadata": canary}))


def in_object(folder: Path, canary: Canary) -> None:
    metadata = contents_of(folder)
    index = first_object(metadata)
    info = metadata.storage_data[index]
    file = folder / info.relative_path
    content = file.read_bytes()
    file.write_bytes(content + saved([canary]))
    moved = replace(info, offset=len(content), length=file.stat().st_size - len(content))
    metadata.storage_data[index] = moved
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def beside_the_folder(folder: Path, canary: Canary) -> None:
    metadata = contents_of(folder)
    index = first_object(metadata)
    (folder.parent / "beside.distcp").write_bytes(saved([canary]))
    metadata.storage_data[index] = replace(metadata.storage_data[index], relative_path="../beside.distcp")
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def in_another_format(folder: Path, canary: Canary) -> None:
    said = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps({**said, "sharded_backend": "zarr"}))


PLACES: dict[Callable[[Path, Canary], None], str] = {
    in_contents: r"\.metadata would call '\w+ mkdir' when it is loaded",
    in_common: r"common\.pt would call '\w+ mkdir'",
    in_object: r"\.distcp, \d+ bytes from \d+ would call '\w+ mkdir'",
    beside_the_folder: r"'\.\./beside\.distcp', which is no plain file of this folder",
    in_another_format: r"metadata\.json says .*zarr",
}


def try_to_load(model: Path, at: Path) -> tuple[str, bool]:
    """What loading says, and whether it left every weight as it was."""
    built, _, optimizer = learner(model, {})
    before = [parameter.detach().clone() for parameter in built.chunks[0].parameters()]
    try:
        saving.load(at, built.chunks, optimizer.megatron)
        said = ""
    except SpecError as error:
        said = str(error)
    after = built.chunks[0].parameters()
    return said, all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_canary_is_named_and_never_called_and_no_weight_is_touched(home, tmp_path, place):
    folder = Path(shutil.copytree(home / "good", tmp_path / "bad"))
    place(folder, Canary(tmp_path / "called"))
    ((said, untouched),) = ranks.run(try_to_load, world=1, model=home / "model", at=folder)
    assert re.search(PLACES[place], said), said
    assert untouched
    with pytest.raises(SpecError, match=PLACES[place]):
        Reader(folder)
    assert not (tmp_path / "called").exists()


def test_without_the_check_the_canary_would_have_been_called(home, tmp_path):
    folder = Path(shutil.copytree(home / "good", tmp_path / "bad"))
    in_contents(folder, Canary(tmp_path / "called"))
    contents_of(folder)
    assert (tmp_path / "called").exists()


def test_what_was_saved_here_passes(home):
    trust.check(home / "good")
    ((said, untouched),) = ranks.run(try_to_load, world=1, model=home / "model", at=home / "good")
    assert (said, untouched) == ("", False)


@pytest.mark.parametrize("name", [".metadata", "common.pt", "metadata.json"])
def test_a_missing_or_damaged_file_is_named(home, tmp_path, name):
    folder = Path(shutil.copytree(home / "good", tmp_path / "bad"))
    (folder / name).write_bytes(b"\x80\x04nonsense")
    with pytest.raises(SpecError, match=re.escape(name)):
        trust.check(folder)
    (folder / name).unlink()
    with pytest.raises(SpecError, match=re.escape(name)):
        trust.check(folder)


class Hashed:
    """Hashes a tuple that doubles again and again, when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[list[tuple[object, int]]]]:
        return OrderedDict, ([(tuples(LAUGHS), 0)],)


def laughing_contents(folder: Path) -> None:
    metadata = contents_of(folder)
    metadata.planner_data = Hashed()
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def laughing_common(folder: Path) -> None:
    (folder / "common.pt").write_bytes(saved({"content_metadata": Hashed()}))


def laughing_tensor(folder: Path) -> None:
    metadata = contents_of(folder)
    index = next(one for one in metadata.storage_data if one.offset is not None)
    info = metadata.storage_data[index]
    file = folder / info.relative_path
    content, laughing = file.read_bytes(), saved(Hashed())
    file.write_bytes(content + laughing)
    metadata.storage_data[index] = replace(info, offset=len(content), length=len(laughing))
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    "place", [laughing_contents, laughing_common, laughing_tensor], ids=lambda place: place.__name__
)
def test_what_would_be_worked_on_for_ever_is_refused_before_it_is_built(home, tmp_path, place):
    folder = Path(shutil.copytree(home / "good", tmp_path / "bad"))
    place(folder)
    where = r"(\.metadata|common\.pt|\.distcp, \d+ bytes from \d+)"
    with pytest.raises(SpecError, match=where + " holds no readable pickle .*unfolds"):
        trust.check(folder)


def as_bytes(value: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def test_scales_of_fp8_pass_and_what_hides_behind_an_offset_does_not(monkeypatch, tmp_path):
    recipes = types.ModuleType("transformer_engine.common.recipe")
    recipes.DelayedScaling = make_dataclass("DelayedScaling", ["margin"], namespace={"__module__": recipes.__name__})
    monkeypatch.setitem(sys.modules, "transformer_engine", types.ModuleType("transformer_engine"))
    monkeypatch.setitem(sys.modules, "transformer_engine.common", types.ModuleType("transformer_engine.common"))
    monkeypatch.setitem(sys.modules, recipes.__name__, recipes)
    scales = as_bytes({"recipe": recipes.DelayedScaling(0), "scale_fwd": torch.ones(3), "extra": {"num_gemms": 1}})
    none = {"a._extra_state": None, "b._extra_state": torch.empty(0, dtype=torch.uint8), "weight": object()}
    trust.check_states({"c._extra_state": scales, **none}, "FOLDER")
    canary = as_bytes(Canary(tmp_path / "called"))
    with pytest.raises(SpecError, match=r"FOLDER: 'c._extra_state' would call '\w+ mkdir'"):
        trust.check_states({"c._extra_state": torch.cat([scales, canary])[len(scales) :]}, "FOLDER")
    with pytest.raises(SpecError, match="should be a tensor of bytes or nothing, got BytesIO"):
        trust.check_states({"c._extra_state": io.BytesIO(b"x")}, "FOLDER")
