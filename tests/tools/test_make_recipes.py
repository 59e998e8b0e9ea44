import time
from pathlib import Path

import pytest

from megatron_rl.spec.load import load
from tools.make_recipes import PLAN, ROOT, TABLE, pages, plan, written

COMMANDS = {found[1].split()[1]: found[1] for page in pages() for found in PLAN.finditer(page.read_text())}
RECIPES = sorted(path for path in ROOT.glob("examples/*/*.yaml") if path.parent.name != "median_of_means")


def test_every_recipe_has_its_plan_on_the_page_beside_it():
    assert set(COMMANDS) == {str(path.relative_to(ROOT)) for path in RECIPES}
    for page in pages():
        for name in PLAN.findall(page.read_text()):
            assert Path(name.split()[1]).parent == page.parent.relative_to(ROOT)


@pytest.mark.parametrize("config", COMMANDS)
def test_a_plan_takes_less_than_five_seconds_of_processor_time_and_refuses_nothing(config):
    began = time.process_time()
    printed = plan(COMMANDS[config])
    assert time.process_time() - began < 5
    assert f"slurm/train.sbatch {config}" in printed.splitlines()[-1]


def test_the_pages_and_the_table_say_what_is_planned():
    stale = [str(page.relative_to(ROOT)) for page, text in written().items() if page.read_text() != text]
    assert stale == [], "run tools/make_recipes.py"
    assert TABLE.read_text().count(" GiB | ") == 2 * len(RECIPES)


@pytest.mark.parametrize("config", COMMANDS)
def test_what_a_plan_assumes_is_what_the_page_starts(config):
    """Its model has a config.json here, and the job has the machines of the plan."""
    words = COMMANDS[config].split()
    assert words[3] == f"examples/models/{Path(str(load(ROOT / config).settings['model'].values['folder'])).name}"
    started = [line for line in plan(COMMANDS[config]).splitlines() if line.startswith("sbatch")]
    assert f"\n    {started[0]}\n" in (ROOT / config).with_name("README.md").read_text()
