"""The package keeps the laws of the house, and the laws catch what breaks them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from megatron_rl.spec.resolve import names
from tests.architecture import (
    IDEAS,
    WITHOUT_TORCH,
    Source,
    cycles,
    dangers,
    doors,
    floors,
    graph,
    imports,
    local_imports,
    reach,
    sizes,
    sources,
    within,
    words,
)

REPOSITORY = Path(__file__).parent.parent
MODULES = sources(REPOSITORY / "megatron_rl")
OTHERS = [source for folder in ("tests", "tools", "examples") for source in sources(REPOSITORY / folder)]
EDGES = graph(MODULES)


@pytest.mark.parametrize("law", [floors, doors, local_imports, sizes, dangers, words], ids=lambda law: law.__name__)
def test_the_package_keeps_the_law_of(law):
    offences = [str(offence) for source in MODULES for offence in law(source)]
    assert offences == []


def test_tests_tools_and_examples_are_no_longer_than_the_package_may_be():
    offences = [str(offence) for source in OTHERS for offence in sizes(source, parameters=8)]
    assert offences == []


def test_no_imports_go_in_a_circle():
    assert cycles(EDGES) == []


def test_configuration_plans_and_the_command_line_wake_no_torch():
    imported = {
        source.name: {each.module.split(".")[0] for each in imports(source) if not each.is_local} for source in MODULES
    }
    offences = [
        f"{source.name} imports {reached}, which imports torch"
        for source in MODULES
        if within(source.name, WITHOUT_TORCH)
        for reached in reach(source.name, EDGES)
        if "torch" in imported.get(reached, ())
    ]
    assert offences == []


def test_every_module_has_its_test():
    missing = []
    for source in MODULES:
        path = REPOSITORY / "megatron_rl" / Path(*source.name.split("."))
        test = REPOSITORY / "tests" / Path(*source.name.split(".")[:-1]) / f"test_{source.name.split('.')[-1]}.py"
        if not path.is_dir() and not test.exists():
            missing.append(str(test.relative_to(REPOSITORY)))
    assert missing == []


def test_every_test_in_a_mirrored_folder_has_its_module():
    rooms = {source.room for source in MODULES}
    orphans = [
        source.name
        for source in sources(REPOSITORY / "tests")
        if source.room in rooms
        and source.name.split(".")[-1].startswith("test_")
        and source.name.replace(".test_", ".") not in {module.name for module in MODULES}
    ]
    assert orphans == []


def test_a_package_file_holds_words_only():
    for path in (REPOSITORY / "megatron_rl").rglob("__init__.py"):
        kinds = {type(node) for node in ast.parse(path.read_text()).body}
        assert kinds <= {ast.Expr, ast.Assign}, path


def test_every_idea_appears_in_a_configuration():
    files = [*(REPOSITORY / "configs").rglob("*.yaml"), *(REPOSITORY / "examples").rglob("*.yaml")]
    text = "\n".join(path.read_text() for path in files)
    unused = [f"{room}/{name}" for room in IDEAS for name in names(room) if name not in text]
    assert unused == []


@pytest.mark.parametrize(
    ("law", "name", "text", "said"),
    [
        (floors, "ops.x", "from megatron_rl.batch.batch import Batch", "may not import batch.batch.Batch"),
        (floors, "batch.x", "import megatron_rl.spec.schema", "may not import"),
        (floors, "stages.x", "from megatron_rl.stages.y import Y", "may not import"),
        (floors, "stages.x", "from megatron_rl.actor.y import Y", "may not import"),
        (floors, "actor.x", "from megatron_rl.rollout.y import Y", "may not import"),
        (floors, "rollout.x", "from megatron_rl.stages.y import Y", "may not import"),
        (floors, "loop", "from megatron_rl.actor.y import Y", "may not import"),
        (floors, "ports", "from megatron_rl import loop", "may not import loop"),
        (floors, "attic.x", "", "has no floor"),
        (doors, "actor.x", "import vllm.engine", "whose door is rollout"),
        (doors, "loop", "def f():\n    from megatron.core import x", "whose door is actor"),
        (doors, "rewards.exact", "import math_verify", "whose door is rewards.math"),
        (doors, "stages.x", "import pyarrow as pa", "whose door is batch and data"),
        (local_imports, "actor.x", "def f():\n    import json", "imports json inside a function"),
        (local_imports, "loop", "def f():\n    from megatron_rl.ops import x", "inside a function"),
        (sizes, "x", "a = 1\n" * 301, "has 301 lines"),
        (sizes, "x", "def f():\n" + "    a = 1\n" * 60, "f has 61 lines"),
        (sizes, "x", "def f(a, b, c, d, *, e, g): ...", "f takes 6 parameters"),
        (dangers, "x", "eval('1')", "calls eval"),
        (dangers, "x", "torch.load(path)", "calls torch.load"),
        (dangers, "x", "yaml.load(text, Loader=L)", "calls yaml.load"),
        (dangers, "x", "import pickle", "imports pickle"),
        (dangers, "x", "run('ls', shell=True)", "starts a shell"),
        (dangers, "x", "np.load(path, allow_pickle=True)", "unpickles"),
        (dangers, "x", "self.cfg.get('lr', 1)", "reads a configuration softly"),
        (dangers, "x", "getattr(config, 'lr', 1)", "reads a configuration softly"),
        (words, "ops.utils", "", "a name that says nothing"),
        (words, "x", "class RolloutManager: ...", "another word for"),
        (words, "x", "class BaseV2: ...", "another word for"),
        (words, "x", "a = 1  # good enough for now", "unfinished"),
    ],
)
def test_the_law_catches(law, name, text, said):
    offences = [str(offence) for offence in law(Source(name, text))]
    assert len(offences) == 1
    assert said in offences[0]


@pytest.mark.parametrize(
    ("law", "name", "text"),
    [
        (floors, "stages.x", "from megatron_rl.ops.y import f\nfrom megatron_rl.ports import Context"),
        (floors, "actor.x", "from megatron_rl.actor.y import Y\nfrom megatron_rl.reshard.plan import plan"),
        (floors, "loop", "from megatron_rl import checkpoint\nfrom megatron_rl.batch.batch import Batch"),
        (floors, "cli", "from megatron_rl.stages.x import X\nfrom megatron_rl.actor.y import Y"),
        (doors, "actor.x", "from megatron.core import y"),
        (local_imports, "rollout.x", "def f():\n    from vllm import LLM"),
        (sizes, "x", "def f(self, a, b, c, d, e, *rest, **more): ..."),
        (dangers, "x", "model.eval()\nyaml.safe_load(t)\nresults.get('a')\nre.compile('x')"),
        (words, "x", "class VllmEngine: ..."),
    ],
)
def test_the_law_lets_pass(law, name, text):
    assert list(law(Source(name, text))) == []


def test_a_circle_is_found_once():
    circle = [
        Source("a", "import megatron_rl.b"),
        Source("b", "from megatron_rl.c import x"),
        Source("c", "from megatron_rl import a"),
        Source("d", "import megatron_rl.a"),
    ]
    assert cycles(graph(circle)) == [["a", "b", "c"]]
    assert cycles(graph(circle[1:])) == []


def test_what_an_import_wakes_includes_the_packages_above_it():
    edges = {"cli": {"actor.x"}, "actor.x": set(), "actor": {"actor.y"}, "actor.y": set()}
    assert reach("cli", edges) == {"cli", "actor.x", "actor", "actor.y"}
