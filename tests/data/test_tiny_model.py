import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_rl.data.arithmetic import Arithmetic, demonstration
from megatron_rl.data.tiny_model import VOCABULARY, WORDS, tiny_tokenizer, write_tiny_model

transformers.utils.logging.disable_progress_bar()


def test_the_vocabulary_has_35_words_and_64_places():
    tokenizer = tiny_tokenizer()
    assert len(WORDS) == len(set(WORDS)) == 35
    assert len(tokenizer) == VOCABULARY == 64
    assert all(tokenizer.decode([token]) for token in range(VOCABULARY))


def test_every_problem_and_demonstration_survives_the_tokenizer():
    tokenizer = tiny_tokenizer()
    rng = np.random.default_rng(0)
    for problem in Arithmetic().problems(50, seed=0):
        text = f"{problem.text} {demonstration(problem, rng)}"
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        assert len(tokenizer(text)["input_ids"]) == len(text.split())


def test_an_unknown_word_is_an_error():
    with pytest.raises(Exception, match="UNK"):
        tiny_tokenizer()("hello")


def test_transformers_loads_the_folder_and_the_seed_decides_the_weights(tmp_path):
    folders = [write_tiny_model(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1] != weights[2]
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    config = model.config
    shape = (config.model_type, config.hidden_size, config.num_hidden_layers, config.head_dim, config.vocab_size)
    assert shape == ("qwen3", 96, 4, 32, 64)
    assert config.tie_word_embeddings
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == config.eos_token_id
    assert sum(parameter.numel() for parameter in model.parameters()) == 375_904
    logits = model(torch.tensor([tokenizer("<q> a 4 7 ; a ? <think>")["input_ids"]])).logits
    assert logits.shape == (1, 8, 64)
    assert logits.isfinite().all()


def test_writing_a_model_leaves_the_random_numbers_of_others_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    write_tiny_model(tmp_path, seed=1)
    assert torch.equal(torch.rand(3), expected)
