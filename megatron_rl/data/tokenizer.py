"""Tokenizers of a local Hugging Face folder, and prompts put into their chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from transformers import AutoTokenizer

from megatron_rl.data.prompt_file import Message, user
from megatron_rl.data.rendering import rendered

Chat = Literal["messages", "always", "never"]


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: str | None
    name_or_path: str
    special_tokens_map: Mapping[str, object]

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]: ...

    def get_chat_template(self, chat_template: object = None, tools: object = None) -> str: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model's folder; no hub is asked and no code of the folder is run."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {folder} to take a tokenizer from")
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return tokenizer


def decoder(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    """Tokens to text as engines give it: without special tokens, spaces left alone."""

    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode(list(tokens), skip_special_tokens=True)

    return decode


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a prompt becomes the text a model continues."""

    tokenizer: Tokenizer
    chat: Chat = "messages"
    """'messages': chat messages go through the tokenizer's template, text stays as it is. 'always': text too, as a
    user's message. 'never': the contents of messages, joined by empty lines."""
    system: str = ""
    """Put before messages that have no system message."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Further variables of the template, {'enable_thinking': False} for example."""

    def texts(self, prompts: Sequence[str | Sequence[Message]]) -> list[str]:
        """What the model continues, of each prompt. One process renders all that go through the template."""
        asked = [self._asked(prompt) for prompt in prompts]
        conversations = [each for each in asked if not isinstance(each, str)]
        if conversations and self.tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template for prompts of messages; set data.chat: never")
        further = dict(self.arguments)
        named, tools = further.pop("chat_template", None), further.get("tools")
        template = self.tokenizer.get_chat_template(named, tools) if conversations else ""
        given = {**self.tokenizer.special_tokens_map, **further} if conversations else {}
        texts = iter(rendered(conversations, template, given, self.tokenizer.name_or_path))
        return [each if isinstance(each, str) else next(texts) for each in asked]

    def _asked(self, prompt: str | Sequence[Message]) -> str | list[Message]:
        """The text as it is, or the messages that go through the template."""
        if isinstance(prompt, str):
            if self.chat != "always":
                return prompt
            prompt = user(prompt)
        messages = list(prompt)
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        if self.chat == "never":
            return "\n\n".join(message["content"] for message in messages)
        return messages

    def tokens(self, texts: list[str], are_rendered: bool) -> list[list[int]]:
        """Token ids of texts; a rendered template brings its own special tokens."""
        if not texts:
            return []
        try:
            return list(self.tokenizer(texts, add_special_tokens=not are_rendered)["input_ids"])
        except Exception as error:  # noqa: BLE001  # the library knows no other kind
            raise ValueError(
                f"the tokenizer of {self.tokenizer.name_or_path} cannot read {self._unread(texts)!r} ({error}); add "
                "that to its vocabulary, or a token for what is unknown, or leave such prompts out"
            ) from None

    def _unread(self, texts: list[str]) -> str:
        """The first word that cannot be read by itself, or the text where all its words can."""
        text = next((text for text in texts if not self._reads(text)), "")
        return next((word for word in text.split() if not self._reads(word)), text[:60])

    def _reads(self, text: str) -> bool:
        try:
            self.tokenizer([text], add_special_tokens=False)
        except Exception:  # noqa: BLE001  # as above
            return False
        return True
