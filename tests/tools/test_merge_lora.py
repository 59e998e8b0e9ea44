import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.fakes.tiny_models import tiny_folder
from tools.merge_lora import main


def test_the_base_is_written_with_its_changes_and_the_exit_code_tells(tmp_path, capsys):
    base = tiny_folder(tmp_path / "base", "llama", num_hidden_layers=1)
    (base / "tokenizer.json").write_text("{}")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    arguments = [str(tmp_path / name) for name in ("base", "adapter", "merged")]
    assert main(arguments) == 0
    assert "1 matrices merged" in capsys.readouterr().out
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "model.layers.0.self_attn.q_proj.weight"
    ]
    theirs = adapted.merge_and_unload().state_dict()["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(after["model.layers.0.self_attn.q_proj.weight"], theirs, rtol=0, atol=1e-6)
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    assert main(arguments) == 2
    assert "exists; name a folder that does not" in capsys.readouterr().err
