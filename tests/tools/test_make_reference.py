from megatron_rl.spec.run import SECTIONS
from tools.make_reference import page


def test_every_section_has_its_heading_and_its_keys():
    text = page()
    for section in SECTIONS:
        assert f"\n## {section.name}\n\n{section.meaning}" in text
    assert "  tp = 1  (an integer)  Tensor parallel" in text
