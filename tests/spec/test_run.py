import pytest

from megatron_rl.spec.resolve import names, settings
from megatron_rl.spec.run import SECTIONS, RunSettings


def test_every_section_is_described_by_a_dataclass_or_a_room():
    for section in SECTIONS:
        if section.kind == "settings":
            assert settings(section).fields, section.name
        else:
            assert section.room, section.name


def test_a_default_choice_is_a_known_name():
    for section in SECTIONS:
        assert not section.default or section.default in names(section.room)


@pytest.mark.parametrize("name", ["", ".", "..", "../../etc", "/abs", "a/b", "a\0b"])
def test_the_name_of_a_run_is_one_folder(name):
    with pytest.raises(ValueError, match=r"it names one folder inside run\.folder"):
        RunSettings(name=name)
    assert RunSettings(name="2026-11 日本 a.b").name == "2026-11 日本 a.b"
