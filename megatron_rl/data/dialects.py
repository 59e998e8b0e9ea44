"""Rows of prompt files as people have them: this project's, verl's, and the JSON lines of slime and DAPO."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from megatron_rl.data.prompt_file import Message, Prompt
from megatron_rl.data.records import Fields, Record


def read_prompt(record: Record) -> Prompt:
    """The row as a prompt. ValueError says what is missing."""
    if record.unreadable:
        raise ValueError(record.unreadable)
    fields = record.fields
    if "reward_model" in fields:
        return _verl(fields)
    if "label" in fields:
        return _slime(fields, Path(record.file).stem)
    if "answer" in fields:
        return _own(fields, Path(record.file).stem)
    raise ValueError(
        f"has the fields {sorted(fields)}, but none of 'answer' (this project's), 'reward_model' (verl's) "
        "and 'label' (slime's)"
    )


def _own(fields: Fields, default_source: str) -> Prompt:
    extra = fields.get("extra")
    return Prompt(
        prompt=_prompt(fields),
        answer=answer_text(fields["answer"]),
        source=str(fields.get("source") or default_source),
        extra=_mapping(_parsed(extra) if isinstance(extra, str) and extra else extra),
        prompt_id=str(fields.get("prompt_id") or ""),
    )


def _verl(fields: Fields) -> Prompt:
    reward_model = fields["reward_model"]
    if not isinstance(reward_model, Mapping) or "ground_truth" not in reward_model:
        raise ValueError(f"'reward_model' must hold a 'ground_truth', got {reward_model!r}")
    return Prompt(
        prompt=_prompt(fields),
        answer=answer_text(reward_model["ground_truth"]),
        source=str(fields.get("data_source") or "unknown"),
        extra=_mapping(fields.get("extra_info")),
    )


def _slime(fields: Fields, default_source: str) -> Prompt:
    return Prompt(
        prompt=_prompt(fields),
        answer=answer_text(fields["label"]),
        source=str(fields.get("data_source") or fields.get("source") or default_source),
        extra=_mapping(fields.get("metadata") or fields.get("extra_info")),
    )


def _prompt(fields: Fields) -> str | list[Message]:
    prompt = fields.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    if isinstance(prompt, list) and prompt and all(_is_message(message) for message in prompt):
        return [{"role": message["role"], "content": message["content"]} for message in prompt]
    raise ValueError(f"'prompt' must be text or messages with 'role' and 'content', got {prompt!r:.100}")


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def answer_text(answer: object) -> str:
    """A reference answer as text: 34, 34.0 and ' 34 ' are '34'; a list of answers is written as JSON."""
    if isinstance(answer, bytes):
        raise ValueError(f"the reference answer is bytes, not text: {answer!r:.60}")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"the reference answer is {answer}")
    text = json.dumps(answer, ensure_ascii=False) if isinstance(answer, list | dict) else str(answer).strip()
    if not text or _is_nothing(answer):
        raise ValueError("the reference answer is empty")
    return text


def _is_nothing(answer: object) -> bool:
    """None, or a container of nothing else."""
    if isinstance(answer, list | dict):
        return all(_is_nothing(each) for each in (answer.values() if isinstance(answer, dict) else answer))
    return answer is None


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the extra facts are nested too deeply") from None


def _mapping(extra: object) -> Fields:
    """A row's further facts; fields that Arrow filled with nothing are left out."""
    if extra is None:
        return {}
    if not isinstance(extra, Mapping):
        raise ValueError(f"the extra facts must be a mapping, got {extra!r:.100}")
    return {str(key): value for key, value in extra.items() if value is not None}
