"""The process in which chat templates run: `python -m megatron_rl.data.renderer`, a line of JSON each way.

A template comes with a model from anywhere. Its sandbox reaches nothing, but what loops or grows there without end
does so here, where memory and time are bounded, and not in the run's own process.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from transformers.utils.chat_template_utils import render_jinja_template

MEMORY_BYTES: Final = 2 << 30
MOST_CHARACTERS: Final = 1 << 22
"""Of one prompt."""
CPU_S: Final = 20
"""Of one line, for a process whose parent is gone."""


def main() -> None:
    """Takes the template and its variables, answers that it is ready, then renders a list of conversations a line."""
    order = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = math.ceil(used.ru_utime + used.ru_stime) + CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
        print(json.dumps([answer(order, messages) for messages in json.loads(line)]), flush=True)


def answer(order: Mapping[str, Any], messages: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The text, or what the template came to instead."""
    try:
        (text,), _ = render_jinja_template(
            conversations=[messages],
            chat_template=order["template"],
            add_generation_prompt=True,
            **order["arguments"],
        )
    except Exception as error:  # noqa: BLE001  # whatever a foreign template raises
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    if len(text) > MOST_CHARACTERS:
        return {"error": f"it writes {len(text):,} characters, and {MOST_CHARACTERS:,} are the most"}
    return {"text": text}


if __name__ == "__main__":
    main()
