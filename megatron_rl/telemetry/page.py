"""One HTML file from its parts in `assets/`: no server, no network, nothing in it runs but the page's own script."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files

SCRIPTS = ("format.js", "series.js", "frame.js", "chart.js", "stack.js", "tokens.js", "samples.js", "app.js")

# Inside a JSON string these four can only be data, and written this way they can neither end the block nor start a tag.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"}


def page(title: str, data: object) -> str:
    """The whole page. A policy of hashes forbids every script and style but its own, and any request."""
    script = "(() => {\n'use strict';\n" + "\n".join(_part(name) for name in SCRIPTS) + "\n})();\n"
    style = _part("style.css")
    allowed = f"script-src {_digest(script)}; style-src {_digest(style)}"
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'",
        "style": style,
        "data": embedded(data),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("template.html"))


def embedded(data: object) -> str:
    """JSON that is safe inside a script element, whatever a model has written."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&']", lambda match: _UNSAFE[match[0]], text)


def _part(name: str) -> str:
    return (files("megatron_rl.telemetry") / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
