from megatron_rl.spec.run import SECTIONS
from tools.make_reference import PAGE, page


def test_every_section_has_its_heading_and_its_keys():
    text = page()
    for section in SECTIONS:
        assert f"\n## {section.name}\n\n{section.meaning}" in text
    assert "  tp = 1  (an integer)  Tensor parallel" in text


def test_the_page_in_the_documentation_is_what_the_tool_writes():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tools/make_reference.py`"
