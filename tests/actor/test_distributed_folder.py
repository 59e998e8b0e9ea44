import pytest
import torch
from megatron.core import dist_checkpointing

from megatron_rl.actor.conversion import alone
from megatron_rl.actor.distributed_folder import Contents, Reader, write
from megatron_rl.reshard.layout import Key
from megatron_rl.reshard.local import slices
from megatron_rl.reshard.stored import Chunk
from megatron_rl.spec.schema import SpecError

VALUES = torch.arange(24.0).reshape(2, 3, 4)


def chunk(layer: int, start: int, stop: int) -> Chunk:
    return Chunk("stack", (2, 3, 4), ((layer, layer + 1), (0, 3), (start, stop)), Key(0, "x"), ((0, 3), (start, stop)))


FILES = ((chunk(0, 0, 1), chunk(1, 0, 1)), (chunk(0, 1, 4), chunk(1, 1, 4)))


@pytest.fixture
def written(tmp_path):
    asked = []

    def produce(number: int, one: Chunk) -> torch.Tensor:
        asked.append((number, one))
        return VALUES[slices(one.at)]

    with alone():
        write(tmp_path, Contents(FILES, ("object/shard_0_1",), torch.float32), produce, {"says": "something"})
    # Two threads ask, each for the chunks of its file in their order.
    assert all([one for at, one in asked if at == number] == list(file) for number, file in enumerate(FILES))
    return tmp_path


def test_chunks_are_asked_for_in_turn_and_read_back_as_any_box(written):
    reader = Reader(written)
    assert {name: entry.shape for name, entry in reader.tensors.items()} == {"stack": (2, 3, 4)}
    for box in (((0, 2), (0, 3), (0, 4)), ((1, 2), (1, 3), (0, 2)), ((0, 1), (2, 3), (3, 4))):
        assert torch.equal(reader.read("stack", box), VALUES[slices(box)])


def test_megatron_reads_it_as_its_own(written):
    with alone():
        assert torch.equal(dist_checkpointing.load_plain_tensors(str(written))["stack"], VALUES)
        assert dist_checkpointing.load_content_metadata(str(written)) == {"says": "something"}
    assert sorted(path.name for path in written.iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
        "common.pt",
        "metadata.json",
    ]


def test_chunks_that_leave_a_gap_or_overlap_are_never_written(tmp_path):
    with alone(), pytest.raises(ValueError, match="the chunks of 'stack' leave 18 of its elements out"):
        write(tmp_path, Contents(FILES[:1], (), torch.float32), lambda _, one: VALUES[slices(one.at)], {})
    twice = (FILES[0], (*FILES[1], chunk(1, 2, 3)._replace(at=((1, 2), (0, 1), (2, 3)))))
    with alone(), pytest.raises(ValueError, match="has overlapping chunks"):
        write(tmp_path, Contents(twice, (), torch.float32), lambda _, one: VALUES[slices(one.at)], {})
    with pytest.raises(SpecError, match=r"is no Megatron distributed checkpoint"):
        Reader(tmp_path)


@pytest.mark.parametrize("said", ["{", '{"sharded_backend_version": 1, "other": 2}', "[" * 100_000])
def test_a_folder_whose_metadata_is_damaged_is_refused_by_that_file(written, said):
    (written / "metadata.json").write_text(said)
    with pytest.raises(SpecError, match=r"lacks a readable metadata\.json"):
        Reader(written)
