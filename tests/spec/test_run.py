from megatron_rl.spec.resolve import names, settings
from megatron_rl.spec.run import SECTIONS


def test_every_section_is_described_by_a_dataclass_or_a_room():
    for section in SECTIONS:
        if section.kind == "settings":
            assert settings(section).fields, section.name
        else:
            assert section.room, section.name


def test_a_default_choice_is_a_known_name():
    for section in SECTIONS:
        assert not section.default or section.default in names(section.room)
