import json

from megatron_rl.rollout.vocabulary import Vocabulary, end_tokens


def spelt(tokens):
    return "".join("abcdefgh"[token] for token in tokens)


def test_an_end_token_or_a_completed_text_stops():
    vocabulary = Vocabulary(decode=spelt, end=(7,), stop=("bcd",))
    assert vocabulary.is_stopped([0, 7])
    assert vocabulary.is_stopped([0, 1, 2, 3])
    assert not vocabulary.is_stopped([1, 2])
    assert not vocabulary.is_stopped([])


def test_a_text_completed_earlier_is_not_found_again():
    assert not Vocabulary(decode=spelt, end=(), stop=("bcd",)).is_stopped([1, 2, 3, 0])


def test_end_tokens_come_from_the_folder_and_the_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert end_tokens(tmp_path, also=2) == (2, 5)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert end_tokens(tmp_path) == (5, 6)
    assert end_tokens(tmp_path / "nowhere") == ()
