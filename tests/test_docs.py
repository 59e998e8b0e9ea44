"""The documentation: links lead somewhere, what it names exists, its commands and configurations can be read."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from megatron_rl.cli import COMMANDS, main
from megatron_rl.ideas import read_ideas
from megatron_rl.spec.load import load

HOME = Path(__file__).parents[1]
PAGES = [
    *sorted((HOME / "docs").glob("*.md")),
    *sorted((HOME / "examples").glob("*/README.md")),
    HOME / "README.md",
    HOME / "CONTRIBUTING.md",
    HOME / "SECURITY.md",
]
FENCES = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_commands_exist(page):
    text = page.read_text()
    for path in re.findall(r"(?:configs|tools|slurm|examples|requirements|tests)/[\w/.-]*\w", text):
        assert (HOME / path).exists() or Path(path).stem in ("x", "test_x"), path
    # An indented line or the beginning of inline code; prose may say the name of the program alone.
    for command in re.findall(r"(?:^ {4}|^    \.venv/bin/|`)(?:\.venv/bin/)?megatron-rl ([a-z-]+)", text, re.MULTILINE):
        assert command in COMMANDS, command


def test_the_program_says_what_troubleshooting_quotes():
    page = (HOME / "docs" / "troubleshooting.md").read_text()
    sources = "".join(path.read_text() for path in sorted((HOME / "megatron_rl").rglob("*.py")))
    said = re.sub(r'"\s*\n\s*f?"', "", sources)
    quoted = [
        text for symptom in re.findall(r"(?ms)^\*\*(.*?)\*\*", page) for text in re.findall(r'"([^"]+)"', symptom)
    ]
    assert len(quoted) >= 6
    for part in (part.strip(" .',") for text in quoted for part in text.replace("\n", " ").split("…")):
        assert part in said, part


@pytest.mark.parametrize("text", FENCES)
def test_configurations_load_and_every_column_is_written_before_it_is_read(text, tmp_path):
    written = {"extends": "base/math_7b.yaml", **yaml.safe_load(text)}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
    read_ideas(load(tmp_path / "run.yaml"))


def command_lines(program: str) -> list:
    """Every whole line of documentation that calls the program, with its page."""
    line = re.compile(rf"^ {{4}}(?:\.venv/bin/)?{program} (.+)$", re.MULTILINE)
    return [
        pytest.param(shlex.split(said, comments=True), id=f"{page.parent.name}/{page.stem}: {said[:60]}")
        for page in PAGES
        for said in line.findall(page.read_text())
    ]


@pytest.mark.parametrize("words", command_lines("megatron-rl"))
def test_a_command_is_understood_and_its_configuration_loads(words, monkeypatch):
    monkeypatch.chdir(HOME)
    module, asked = import_module(f"megatron_rl.commands.{words[0].replace('-', '_')}"), []
    monkeypatch.setattr(module, "run", lambda arguments: asked.append(arguments) or 0)
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            main(words)
        return
    assert main(words) == 0
    (arguments,) = asked
    config = Path(getattr(arguments, "config", None) or "")
    if config.suffix == ".yaml":
        load(config, getattr(arguments, "settings", ()))


@pytest.mark.parametrize("words", command_lines("sbatch"))
def test_a_job_is_understood_and_its_configuration_loads(words, monkeypatch):
    monkeypatch.chdir(HOME)
    script = next(place for place, word in enumerate(words) if word.startswith("slurm/"))
    assert all(word.startswith("--") or word.isdigit() for word in words[:script])
    if "evaluate" not in words[script]:
        load(Path(words[script + 1]), [word for word in words[script + 2 :] if "=" in word])
