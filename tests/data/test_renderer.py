import pytest

from megatron_rl.data.renderer import MOST_CHARACTERS, answer
from megatron_rl.data.tiny_model import tiny_tokenizer

TEMPLATES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}{{ '<a>' if add_generation_prompt }}",
    "{{ eos_token }}{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% break %}{% endfor %}",
    "{%- set n = namespace(x=0) %}{% for m in messages[::-1] %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}{{ tools }}",
)
MESSAGES = [{"role": "system", "content": " be brief "}, {"role": "user", "content": "a ü <b>?"}]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_says_what_it_says_in_the_library(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    order = {"template": template, "arguments": dict(tokenizer.special_tokens_map)}
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert answer(order, MESSAGES) == {"text": expected}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no system messages') }}", "TemplateError: no system messages"),
        ("{% for", "TemplateSyntaxError: "),
        ("{{ nobody.name }}", "UndefinedError: 'nobody' is undefined"),
        ("{% for i in range(1000000) %}{% endfor %}", "OverflowError: Range too big"),
        ("{{ 'a' * 5000000 }}", f"it writes 5,000,000 characters, and {MOST_CHARACTERS:,} are the most"),
    ],
)
def test_what_is_no_text_is_told(template, said):
    assert answer({"template": template, "arguments": {}}, MESSAGES)["error"].startswith(said)
