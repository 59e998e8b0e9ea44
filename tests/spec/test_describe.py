import yaml

from megatron_rl.spec.describe import as_yaml, describe
from megatron_rl.spec.load import load
from megatron_rl.spec.resolve import find, known, settings
from megatron_rl.spec.run import SECTIONS
from tests.spec.test_load import WHOLE, write


def test_the_help_lists_every_key_of_every_section_and_idea():
    text = describe()
    for section in SECTIONS:
        assert f"\n{section.name}: {section.meaning}" in text
        ideas = [find(name, section.room) for name in known(section)] if section.room else [settings(section)]
        for field in (field for shape in ideas for field in shape.fields):
            assert f" {field.name} = " in text or f" {field.name}: " in text, (section.name, field.name)


def test_a_key_is_shown_with_default_type_and_meaning():
    assert "  tp = 1  (an integer)  Tensor parallel: ranks that share every matrix of a layer.\n" in describe()
    assert "  folder = required  (a path)  Hugging Face folder" in describe()


def test_a_resolved_run_written_and_read_again_is_the_same_run(tmp_path):
    text = WHOLE.replace("some/folder", "'1e-6'")
    spec = load(write(tmp_path, "a.yaml", text), ["actor.precision=fp32", "schedule.max_waves=5"])
    written = as_yaml(spec)
    again = load(write(tmp_path, "b.yaml", written))
    assert again.plain == spec.plain
    assert as_yaml(again) == written
    assert "tp: 1\n" in written
    assert yaml.safe_load(written)["schedule"]["max_waves"] == 5
