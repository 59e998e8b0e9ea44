import pytest

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PROMPT_ID, REWARD
from megatron_rl.batch.memory import read_memory, write_memory

BATCH = Batch.of({PROMPT_ID: ["a", "b"], REWARD: [0.1, 1.0]})


@pytest.mark.parametrize(
    "memory",
    [
        None,
        7,
        0.1 + 0.2,
        {"position": 3, "seen": ["a", "b"], "priority": {"a": 1e-300, "b": float("inf")}},
        {"pending": BATCH, "ready": [BATCH, BATCH], "deep": {"er": {"batch": BATCH}}},
    ],
)
def test_memory_read_back_is_equal(tmp_path, memory):
    write_memory(memory, tmp_path / "slot")
    assert read_memory(tmp_path / "slot") == memory


def test_mapping_order_survives(tmp_path):
    write_memory({"z": 1, "a": 2}, tmp_path)
    assert list(read_memory(tmp_path)) == ["z", "a"]


@pytest.mark.parametrize("memory", [{"x": object()}, {1: "integer key"}, {"$batch": 0}, (1, 2)])
def test_what_is_not_plain_is_refused(tmp_path, memory):
    with pytest.raises(TypeError, match="memory"):
        write_memory(memory, tmp_path)
