import base64
import hashlib
import json
import re

import pytest

from megatron_rl.telemetry.page import embedded, page
from tests.fakes.run_folder import WICKED


def test_what_a_model_wrote_cannot_leave_its_block():
    text = embedded({"response": WICKED, "comment": "<!-- & '"})
    assert not set("<>&'") & set(text)
    assert json.loads(text) == {"response": WICKED, "comment": "<!-- & '"}


def test_a_wicked_name_is_text_in_the_title():
    assert "<title>&lt;/title&gt;&lt;script&gt;x&lt;/script&gt;</title>" in page("</title><script>x</script>", {})


def test_data_that_looks_like_a_template_mark_stays_data():
    assert '{"a":"{{script}}"}' in page("t", {"a": "{{script}}"})


def test_the_policy_allows_the_pages_own_script_and_nothing_else():
    text = page("t", {})
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_the_page_asks_for_nothing_from_anywhere():
    text = page("t", {}).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|src=|@import|url\((?!#)", text)


def test_numbers_that_json_lacks_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        embedded({"x": float("nan")})
