import sys

import psutil
import pytest

from megatron_rl.data import rendering
from megatron_rl.data.prompt_file import user
from megatron_rl.data.rendering import AT_ONCE, rendered

LOOP = "{% for each in range(99999) %}"
FOR_EVER = LOOP * 3 + "{% endfor %}" * 3


def test_every_conversation_gets_its_text_in_order():
    conversations = [user(f"ü{number}") for number in range(2 * AT_ONCE + 1)]
    texts = rendered(conversations, "{{ messages[0].content }} {{ mood }}", {"mood": "calm"}, "a model")
    assert texts == [f"ü{number} calm" for number in range(2 * AT_ONCE + 1)]


def test_a_file_in_the_folder_one_happens_to_be_in_is_not_taken_for_a_library(tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert rendered([user("a")], "{{ messages[0].content }}", {}, "a model") == ["a"]


def test_nothing_is_started_for_nothing(monkeypatch):
    monkeypatch.setattr(rendering, "RENDERER", "nowhere")
    assert rendered([], "", {}, "a model") == []


def test_a_template_without_end_is_ended_and_told_with_its_model_and_the_prompt(monkeypatch):
    monkeypatch.setattr(rendering, "DEADLINE_S", 1.0)
    said = r"chat template of models/x came to no end within 1 s.* at one of 1 prompts from 'what is 1 \+ 1\?' on"
    with pytest.raises(ValueError, match=said):
        rendered([user("what is 1 + 1?")], FOR_EVER, {}, "models/x")
    assert not [child for child in psutil.Process().children() if "renderer" in " ".join(child.cmdline())]


@pytest.mark.parametrize("greedy", ["{{ 'a' * 10 ** 10 }}", "{{ '%9999999999d' | format(1) }}"])
def test_a_template_that_asks_for_all_memory_gets_none(greedy):
    with pytest.raises(ValueError, match=r"cannot render the prompt 'hello' \(MemoryError"):
        rendered([user("hello")], greedy, {}, "a model")
