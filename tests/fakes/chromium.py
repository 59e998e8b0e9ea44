"""A headless Chromium for tests that must see a page drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=4000",
)


def drawn(page: Path, *, address: str = "", width: int = 1600) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what it said on the console. Skips the test where no browser is."""
    browser = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no headless browser: none of {', '.join(_NAMES)} is installed")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *_QUIET, f"--user-data-dir={profile}", f"--window-size={width},1000", "--dump-dom"]
        done = subprocess.run(
            [*command, f"{page.as_uri()}{address}"], capture_output=True, text=True, timeout=60, check=True
        )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def driven(page: Path, script: str, *, width: int, out: Path) -> str:
    """What `script`, added to a copy of the page, posts to a window of this width: `parent.postMessage(text, '*')`."""
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    copy = out / f"driven_{width}.html"
    copy.write_text(free.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    frame = out / f"frame_{width}.html"
    listener = "addEventListener('message', (event) => { document.getElementById('said').textContent = event.data; });"
    frame.write_text(
        f"<pre id=said></pre><script>{listener}</script>"
        f'<iframe src="{copy.name}" style="width:{width}px;height:900px;border:0"></iframe>'
    )
    document, console = drawn(frame)
    assert not console
    return re.search(r'<pre id="said">(.*?)</pre>', document, re.DOTALL)[1]
