"""What every stage promises. A new file under stages/ is tested here before it has a test of its own."""

import importlib
import pkgutil

import pytest
import torch

import megatron_rl.stages
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import DICTIONARY
from megatron_rl.batch.memory import read_memory, write_memory
from megatron_rl.ideas import Budgeted
from megatron_rl.ports import Context, Stage
from tests.fakes.batches import full_batch
from tests.fakes.tabular import FirstAnswerIsRight, NumberedPrompts, TabularActor, TabularEngine


def all_stages() -> list[Stage]:
    names = [
        module.name
        for module in pkgutil.walk_packages(megatron_rl.stages.__path__, "megatron_rl.stages.")
        if not module.ispkg
    ]
    stages = [stage_of(name)() for name in names]
    return [stage.within(50) if isinstance(stage, Budgeted) else stage for stage in stages]


def stage_of(module_name: str) -> type:
    expected = "".join(word.capitalize() for word in module_name.rpartition(".")[2].split("_"))
    return getattr(importlib.import_module(module_name), expected)


STAGES = pytest.mark.parametrize("stage", all_stages(), ids=lambda stage: type(stage).__name__)
PURE = pytest.mark.parametrize(
    "stage", [s for s in all_stages() if not getattr(s, "uses", ())], ids=lambda stage: type(stage).__name__
)


def context() -> Context:
    machines = {
        "engine": TabularEngine(50),
        "actor": TabularActor(50),
        "judge": FirstAnswerIsRight(),
        "prompts": NumberedPrompts(50),
    }
    return Context(step=2, version=2, seed=3, machines=machines)


def given_only_reads(stage: Stage, seed: int = 0) -> Batch:
    return full_batch(seed).select(stage.reads)


@STAGES
def test_its_columns_are_declared(stage):
    assert all(DICTIONARY.get(column.name, column) == column for column in (*stage.reads, *stage.writes))


@STAGES
def test_it_is_a_frozen_dataclass_that_says_what_it_writes(stage):
    assert stage.__dataclass_params__.frozen
    assert stage.__doc__


@PURE
def test_it_works_when_given_only_what_it_reads_and_writes_only_what_it_says(stage):
    before = given_only_reads(stage)
    after, _ = stage(before, None, context())
    written = {column.name for column in stage.writes}
    assert set(after.table.column_names) == set(before.table.column_names) | written
    for column in stage.reads:
        if column.name not in written and len(after) == len(before):
            assert after.table.column(column.name).equals(before.table.column(column.name))


@PURE
def test_it_leaves_its_input_untouched(stage):
    before, twin = given_only_reads(stage), given_only_reads(stage)
    stage(before, None, context())
    assert before == twin


@PURE
def test_the_same_context_gives_the_same_answer(stage):
    assert stage(given_only_reads(stage), None, context()) == stage(given_only_reads(stage), None, context())


@PURE
def test_row_order_does_not_matter(stage):
    batch = given_only_reads(stage)
    order_B = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
    straight, _ = stage(batch, None, context())
    shuffled, _ = stage(batch.take(order_B), None, context())
    if len(straight) == len(batch):
        expected = straight.take(order_B)
        for column in stage.writes:
            if column.is_ragged:
                torch.testing.assert_close(shuffled.ragged(column).values, expected.ragged(column).values)
            elif str(column.type) != "string":
                torch.testing.assert_close(shuffled.numbers(column), expected.numbers(column))


@PURE
def test_its_memory_survives_a_save(stage, tmp_path):
    _, memory = stage(given_only_reads(stage), None, context())
    write_memory(memory, tmp_path)
    again = read_memory(tmp_path)
    assert again == memory
    assert stage(given_only_reads(stage, 1), again, context()) == stage(given_only_reads(stage, 1), memory, context())
