import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_rl.actor import conversion, distributed_folder, safetensors_folder
from megatron_rl.actor.certificate import Compared, Digest
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.safetensors_folder import INDEX, SINGLE
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.schema import SpecError
from tests import ranks
from tests.actor.conversion_damage import changed, cut_short, in_two_shards, no_file_above
from tests.actor.conversion_programs import SHARD_BYTES, differing_after_load, save_and_export
from tests.fakes.tiny_models import FAMILIES, tiny_folder

FEW = (Parallel(), Parallel(tp=2, pp=2), Parallel(tp=4, pp=2, vpp=2), Parallel(pp=2, stage_layers=(3, 1)))
TWENTY = (
    *(Parallel(tp=tp, pp=pp) for tp, pp in product((1, 2, 4), (1, 2, 4))),
    *(Parallel(tp=tp, pp=pp, vpp=4 // pp) for tp, pp in product((1, 2, 4), (2,))),
    *(Parallel(tp=tp, pp=2, stage_layers=cut) for tp, cut in product((1, 2, 4), ((1, 3), (3, 1)))),
    *(Parallel(tp=tp, pp=3, stage_layers=(1, 2, 1)) for tp in (1, 2)),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {
        (family, tied): tiny_folder(
            root / f"{family}_{tied}",
            family,
            dtype=torch.bfloat16 if tied else torch.float32,
            tie_word_embeddings=tied,
            num_hidden_layers=4,
        )
        for family, tied in product(FAMILIES, (False, True))
    }


def assert_round_trip(source: Path, room: Path, parallel: Parallel) -> None:
    there = conversion.to_megatron(source, room / "there", parallel)
    back = conversion.to_huggingface(room / "there", room / "back")
    assert there.written == there.elements == back.written
    assert there.tensors == back.tensors
    for path in source.iterdir():
        assert path.read_bytes() == (room / "back" / path.name).read_bytes(), path.name
    shutil.rmtree(room)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_file_comes_back_byte_for_byte(folders, tmp_path, family, tied):
    for number, parallel in enumerate(FEW):
        assert_round_trip(folders[family, tied], tmp_path / str(number), parallel)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", TWENTY, ids=str)
def test_every_file_comes_back_byte_for_byte_through_each_of_twenty_layouts(folders, tmp_path, parallel):
    assert len(set(TWENTY)) == 20
    for number, source in enumerate(folders.values()):
        assert_round_trip(source, tmp_path / str(number), parallel)


@pytest.mark.parametrize("cut", [{}, {"tp": 2, "pp": 2}, {"tp": 4}, {"pp": 2, "vpp": 2}], ids=str)
def test_an_actor_of_any_cut_loads_what_was_converted_for_another(folders, tmp_path, cut):
    world = Parallel(**cut).world
    for family, tied in (("qwen2", True), ("qwen3", False)):
        source = folders[family, tied]
        other = tiny_folder(tmp_path / family, family, seed=1, tie_word_embeddings=tied, num_hidden_layers=4)
        target = tmp_path / "converted" / family
        conversion.to_megatron(source, target, Parallel(tp=2, pp=4))
        case = {"folder": source, "other": other, "converted": target, "parallel": cut}
        assert ranks.run(differing_after_load, world, **case) == [[]] * world


@pytest.mark.parametrize(("family", "cut"), [("qwen2", {"tp": 2, "pp": 2}), ("qwen3_moe", {"tp": 2, "ep": 2})])
def test_what_an_actor_saved_is_exported_without_its_optimizer_and_opens_in_transformers(tmp_path, family, cut):
    source, saved, back, twin = (tmp_path / name for name in ("source", "saved", "back", "twin"))
    tiny_folder(source, family, num_hidden_layers=4)
    ranks.run(save_and_export, Parallel(**cut).world, folder=source, to=saved, exported=twin, parallel=cut)
    made = conversion.to_huggingface(saved, back, like=source, shard_bytes=SHARD_BYTES)
    assert made.written == made.elements
    assert (back / "model.safetensors.index.json").exists()
    for path in twin.iterdir():
        assert path.read_bytes() == (back / path.name).read_bytes(), path.name
    model = AutoModelForCausalLM.from_pretrained(back)
    assert model(torch.arange(9)[None]).logits.isfinite().all()


def test_a_flipped_bit_is_found_in_either_format(folders, tmp_path):
    conversion.to_megatron(folders["llama", True], tmp_path / "there", Parallel(tp=2))
    conversion.to_huggingface(tmp_path / "there", tmp_path / "back")
    assert conversion.verify(tmp_path / "there").tensors == conversion.verify(tmp_path / "back").tensors
    tensors = load_file(tmp_path / "back" / SINGLE)
    tensors["model.norm.weight"].view(torch.uint8)[0] ^= 1
    save_file(tensors, tmp_path / "back" / SINGLE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"holds 'model.norm.weight' with other bytes than were converted"):
        conversion.verify(tmp_path / "back")
    needle = tensors["model.layers.2.mlp.down_proj.weight"][:, 48:].contiguous().view(torch.uint8).numpy().tobytes()
    (file,) = (path for path in (tmp_path / "there").glob("*.distcp") if needle in path.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(needle)] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"holds 'model.layers.2.mlp.down_proj.weight' with other bytes"):
        conversion.verify(tmp_path / "there")
    for number, like in enumerate([None, in_bfloat16(folders["llama", True], tmp_path / "like")]):
        with pytest.raises(ValueError, match=r"there holds 'model.layers.2.mlp.down_proj.weight' with other bytes"):
            conversion.to_huggingface(tmp_path / "there", tmp_path / f"again-{number}", like)
        assert not (tmp_path / f"again-{number}").exists()


def in_bfloat16(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return folder


def test_a_checkpoint_that_holds_other_bytes_than_were_read_has_no_name(folders, tmp_path, monkeypatch):
    source, target, write = folders["qwen2", False], tmp_path / "target", distributed_folder.write
    needle = load_file(source / SINGLE)["model.norm.weight"].view(torch.uint8).numpy().tobytes()

    def written_with_a_flipped_bit(folder: Path, *rest: object) -> None:
        write(folder, *rest)
        file = next(path for path in folder.iterdir() if needle in path.read_bytes())
        content = bytearray(file.read_bytes())
        content[content.index(needle)] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(distributed_folder, "write", written_with_a_flipped_bit)
    with pytest.raises(ValueError, match="with other bytes than were converted"):
        conversion.to_megatron(source, target, Parallel(tp=2))
    assert not target.exists()


@pytest.mark.parametrize(
    ("number", "reason"), [(0, "with other bytes than were"), (-1, "begins with other bytes than")]
)
def test_an_export_that_holds_other_bytes_than_were_read_has_no_name(folders, tmp_path, monkeypatch, number, reason):
    conversion.to_megatron(folders["qwen2", False], tmp_path / "there", Parallel(tp=2))
    written, write_at = [], safetensors_folder._write_at
    tensors = len(conversion.verify(tmp_path / "there").tensors)

    def written_with_a_flipped_bit(descriptor: int, content: memoryview, at: int) -> None:
        written.append(at)
        is_flipped = len(written) == (number % (tensors + 1)) + 1
        write_at(descriptor, memoryview(bytes([content[0] ^ 1]) + content[1:]) if is_flipped else content, at)

    monkeypatch.setattr(safetensors_folder, "_write_at", written_with_a_flipped_bit)
    with pytest.raises(ValueError, match=reason):
        conversion.to_huggingface(tmp_path / "there", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"model.norm.weight": None}, r"has no tensor 'model.norm.weight', which its config.json asks for"),
        ({"lm_head.bias": torch.zeros(3)}, r"has a tensor 'lm_head.bias', for which its config.json has no place"),
        ({"model.norm.weight": torch.zeros(63)}, r"has 'model.norm.weight' as \(63,\), but .* asks for \(64,\)"),
        ({"model.norm.weight": torch.zeros(64).half()}, r"holds F16, F32, but needs one type"),
    ],
)
def test_a_folder_that_is_not_its_config_is_refused_before_anything_is_written(folders, tmp_path, tensors, reason):
    source = changed(folders["qwen3", False], tmp_path / "source", tensors)
    with pytest.raises(SpecError, match=reason):
        conversion.to_megatron(source, tmp_path / "target", Parallel())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "model-1.safetensors").unlink(), r"model-1.safetensors does not exist, but .* names"),
        (lambda folder: cut_short(folder / "model-1.safetensors", 9), r"model-1.safetensors is damaged or incomplete"),
        (lambda folder: cut_short(folder / INDEX, 9), r"index.json is not JSON"),
        (lambda folder: cut_short(folder / "config.json", 9), r"config.json is not JSON"),
    ],
)
def test_a_folder_that_is_incomplete_is_refused_by_the_file(folders, tmp_path, damage, reason):
    source = in_two_shards(folders["llama", True], tmp_path / "source")
    damage(source)
    with pytest.raises(SpecError, match=reason):
        conversion.to_megatron(source, tmp_path / "target", Parallel())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_shards_are_read_and_tensors_keep_their_type_whatever_the_config_calls_it(folders, tmp_path):
    source = in_two_shards(folders["llama", False], tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    there = conversion.to_megatron(source, tmp_path / "there", Parallel(tp=2, pp=2))
    assert conversion.to_huggingface(tmp_path / "there", tmp_path / "back").tensors == there.tensors
    assert {digest.dtype for digest in there.tensors.values()} == {"float32"}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "__1_0.distcp").unlink(), r"lacks __1_0.distcp"),
        (lambda folder: cut_short(folder / "__1_0.distcp", 900), r"bytes long, but that has"),
        (lambda folder: cut_short(folder / ".metadata", 50), r"metadata holds no readable pickle"),
        (lambda folder: cut_short(folder / "conversion.json", 9), r"conversion.json is not JSON"),
    ],
)
def test_a_checkpoint_that_is_incomplete_is_refused_by_the_file(folders, tmp_path, damage, reason):
    conversion.to_megatron(folders["llama", True], tmp_path / "there", Parallel(tp=2))
    damage(tmp_path / "there")
    with pytest.raises((SpecError, OSError), match=reason):
        conversion.verify(tmp_path / "there")


@pytest.mark.parametrize("size", [0, 40_000, 200_000])
def test_a_full_disk_is_said_in_its_own_words_and_leaves_nothing(folders, tmp_path, size):
    source = folders["qwen2", False]
    conversion.to_megatron(source, tmp_path / "there", Parallel())
    with no_file_above(size), pytest.raises(OSError, match=r"File too large|could not be written; make room"):
        conversion.to_megatron(source, tmp_path / "target", Parallel())
    with no_file_above(size), pytest.raises(OSError, match="File too large"):
        conversion.to_huggingface(tmp_path / "there", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("number", range(3))
def test_experts_come_back_byte_for_byte_and_an_actor_that_deals_them_loads_them(tmp_path, number):
    parallel, cut = ((FEW[0], {"dp": 2, "ep": 2}), (FEW[1], {"tp": 2, "ep": 2}), (FEW[3], {"tp": 2, "pp": 2}))[number]
    source = tiny_folder(tmp_path / "source", "qwen3_moe")
    assert_round_trip(source, tmp_path / "room", parallel)
    other = tiny_folder(tmp_path / "other", "qwen3_moe", seed=1)
    conversion.to_megatron(source, tmp_path / "converted", parallel)
    world = Parallel(**cut).world
    case = {"folder": source, "other": other, "converted": tmp_path / "converted", "parallel": cut}
    assert ranks.run(differing_after_load, world, **case) == [[]] * world


def test_what_exists_is_left_alone_and_what_cannot_be_is_said(folders, tmp_path):
    source = folders["qwen2", True]
    with pytest.raises(SpecError, match="exists; name a folder that does not"):
        conversion.to_megatron(source, source, Parallel())
    with pytest.raises(LayoutError, match="dp, cp and ep replicate or deal"):
        conversion.to_megatron(source, tmp_path / "target", Parallel(dp=2))
    with pytest.raises(LayoutError, match=r"4 attention heads do not divide over actor.tp = 3"):
        conversion.to_megatron(source, tmp_path / "target", Parallel(tp=3))
    with pytest.raises(SpecError, match=r"keeps no config\.json of its own; name the Hugging Face folder"):
        conversion.to_huggingface(source, tmp_path / "target")
    with pytest.raises(SpecError, match="is no Megatron distributed checkpoint"):
        conversion.to_huggingface(source, tmp_path / "target", like=source)
    conversion.to_megatron(source, tmp_path / "there", Parallel())
    with pytest.raises(SpecError, match=r"has no tensor 'decoder.layers.self_attention.k_layernorm.weight'"):
        conversion.to_huggingface(tmp_path / "there", tmp_path / "target", like=folders["qwen3", True])
    assert not (tmp_path / "target").exists()


def test_a_kill_at_any_moment_leaves_no_target_or_a_whole_one(folders, tmp_path):
    draw = random.Random(7)
    killed = 0
    command = [sys.executable, "-m", "tests.actor.conversion_programs", str(folders["llama", False])]
    for number in range(2):
        target = tmp_path / str(number)
        process = subprocess.Popen([*command, str(target)], stderr=subprocess.DEVNULL)
        aside = target.with_name(f".{number}.writing")
        while process.poll() is None and not aside.exists():
            time.sleep(0.002)
        time.sleep(draw.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if target.exists():
            conversion.verify(target)
        else:
            killed += 1
            conversion.to_megatron(folders["llama", False], target, Parallel())
            assert not aside.exists()
    assert killed


def test_what_another_made_meanwhile_is_left_to_them(folders, tmp_path, monkeypatch):
    target, compared = tmp_path / "target", conversion.compared

    def compared_while_another_writes(folder: Path, streams: Sequence[Compared]) -> dict[str, Digest]:
        target.mkdir()
        (target / "precious").write_text("theirs")
        return compared(folder, streams)

    monkeypatch.setattr(conversion, "compared", compared_while_another_writes)
    with pytest.raises(SpecError, match="exists; name a folder that does not"):
        conversion.to_megatron(folders["llama", False], target, Parallel())
    assert (target / "precious").read_text() == "theirs"
