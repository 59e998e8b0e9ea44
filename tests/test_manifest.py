import hashlib
import json

import pytest

from megatron_rl.checkpoint import save, verify
from megatron_rl.manifest import CheckpointError
from tests.test_checkpoint import FileActor, saved


def test_a_file_that_was_slipped_in_is_refused(tmp_path):
    folder = saved(tmp_path)
    (folder / "actor" / "extra.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"extra\.bin"):
        verify(folder)


def test_a_manifest_edited_by_hand_is_refused(tmp_path):
    folder = saved(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"step": 99}))
    with pytest.raises(CheckpointError, match="seal"):
        verify(folder)


def test_every_flip_of_a_bit_of_a_manifest_is_refused(tmp_path):
    folder = save(tmp_path, 1, FileActor(files=1), None, {"named": "caf\u00e9", 10: "ten", 2: "two"}).folder
    assert verify(folder).facts == {"named": "caf\u00e9", "10": "ten", "2": "two"}
    manifest = folder / "manifest.json"
    content = manifest.read_bytes()
    for bit in range(8 * len(content)):
        manifest.write_bytes((int.from_bytes(content, "little") ^ 1 << bit).to_bytes(len(content), "little"))
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            verify(folder)


@pytest.mark.parametrize("step", [True, -1, 1.0, "1"])
def test_a_step_is_a_whole_number_from_zero(tmp_path, step):
    folder = saved(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"step": step}
    manifest.pop("seal")
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"seal": seal}, indent=1, sort_keys=True))
    with pytest.raises(CheckpointError, match="'step'"):
        verify(folder)
