import pytest

from megatron_rl.data.prompt_file import user
from megatron_rl.data.tiny_model import tiny_tokenizer
from megatron_rl.data.tokenizer import Template, decoder, load_tokenizer

CHAT = (
    "{% for m in messages %}{{ '<q> ' if m.role == 'user' else '; ' }}{{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}{{ '<think>' if thinking is not defined or thinking else '<answer>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def chatty():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def test_messages_go_through_the_template_and_text_stays(chatty):
    template = Template(tokenizer=chatty)
    assert template.texts([user("a ?"), "a ?"]) == ["<q> a ? <think>", "a ?"]
    assert Template(tokenizer=chatty, chat="always").texts(["a ?"]) == ["<q> a ? <think>"]
    assert Template(tokenizer=chatty, chat="never").texts([[*user("a"), *user("b")], "c"]) == ["a\n\nb", "c"]


def test_a_system_message_goes_first_unless_there_is_one(chatty):
    template = Template(tokenizer=chatty, system="b")
    own = [{"role": "system", "content": "c"}, *user("a")]
    assert template.texts([user("a ?"), own]) == ["; b <q> a ? <think>", "; c <q> a <think>"]


def test_the_template_gets_further_variables(chatty):
    assert Template(tokenizer=chatty, arguments={"thinking": False}).texts([user("a")]) == ["<q> a <answer>"]


def test_of_several_templates_the_one_that_the_arguments_ask_for_is_taken():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": CHAT, "tool_use": "a {{ tools[0].function.name }}", "short": "b"}

    def text(**arguments: object) -> str:
        return Template(tokenizer=tokenizer, arguments=arguments).texts([user("a")])[0]

    assert text() == "<q> a <think>"
    assert text(tools=[{"type": "function", "function": {"name": "c"}}]) == "a c"
    assert text(chat_template="short") == "b"


def test_messages_without_a_template_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"no chat template.*data\.chat: never"):
        Template(tokenizer=tiny_tokenizer()).texts([user("a")])


def test_a_folder_gives_back_its_tokenizer(tmp_path, chatty):
    chatty.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.chat_template == CHAT
    assert tokenizer(["a ?"], add_special_tokens=True)["input_ids"] == chatty(["a ?"])["input_ids"]


def test_a_word_that_a_tokenizer_has_no_token_for_is_named_with_the_tokenizer(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    template = Template(tokenizer=load_tokenizer(tmp_path))
    said = rf"the tokenizer of {tmp_path} cannot read 'mice' \(.*UNK.*\); add that to its vocabulary"
    with pytest.raises(ValueError, match=said):
        template.tokens(["a ?", "a mice b", "b"], are_rendered=False)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_tokenizer(tmp_path / "none")


def test_decoding_drops_special_tokens_and_keeps_spaces():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("a 4 7 <answer> 5 6 ? <eos>")["input_ids"]
    assert decoder(tokenizer)(ids) == "a 4 7 <answer> 5 6 ?"


def test_no_texts_are_no_tokens(chatty):
    assert Template(tokenizer=chatty).tokens([], are_rendered=True) == []
