"""Conversations put into a chat template by a process that can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from megatron_rl.data.prompt_file import Message
from megatron_rl.interpreter import command, search_path

RENDERER: Final = "megatron_rl.data.renderer"
AT_ONCE: Final = 64
START_S: Final = 120.0
"""The renderer imports its library in this time."""
DEADLINE_S: Final = 10.0
"""For this many conversations, which take a millisecond each."""


def rendered(
    conversations: Sequence[Sequence[Message]], template: str, arguments: Mapping[str, object], whose: str
) -> list[str]:
    """Their texts, each up to where the model goes on; ValueError where the template comes to no end or to an error."""
    if not conversations:
        return []
    texts: list[str] = []
    with subprocess.Popen(
        command(RENDERER),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the run to handle
        env=os.environ | search_path(),
    ) as process:
        try:
            if not _said(process, {"template": template, "arguments": dict(arguments)}, START_S):
                raise RuntimeError(f"{RENDERER} does not start; what it said stands on stderr above.")
            for start in range(0, len(conversations), AT_ONCE):
                some = conversations[start : start + AT_ONCE]
                texts += _texts(some, _said(process, some, DEADLINE_S), whose)
        finally:
            process.kill()
    return texts


def _texts(conversations: Sequence[Sequence[Message]], answers: bytes, whose: str) -> list[str]:
    if not answers:
        raise ValueError(
            f"the chat template of {whose} came to no end within {DEADLINE_S:g} s, or ended its process, at one of "
            f"{len(conversations)} prompts from {_beginning(conversations[0])} on; use another, or set data.chat: never"
        )
    texts = []
    for messages, answer in zip(conversations, json.loads(answers), strict=True):
        if "error" in answer:
            raise ValueError(
                f"the chat template of {whose} cannot render the prompt {_beginning(messages)} ({answer['error']}); "
                "mend it, or set data.chat: never"
            )
        texts.append(str(answer["text"]))
    return texts


def _said(process: subprocess.Popen[bytes], question: object, deadline_s: float) -> bytes:
    """The line that answers; empty where none comes in time."""
    assert process.stdin is not None, "it is a pipe"
    assert process.stdout is not None, "it is a pipe"
    timer = threading.Timer(deadline_s, process.kill)
    timer.start()
    try:
        process.stdin.write(json.dumps(question, default=str).encode() + b"\n")
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return b""
    finally:
        timer.cancel()


def _beginning(messages: Sequence[Message]) -> str:
    return repr(messages[-1]["content"][:40])
