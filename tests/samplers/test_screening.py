import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, GROUP, KEPT, LOSS_MASK, PHASE, PROMPT_ID, SLOT, STATUS, VERSION
from megatron_rl.batch.memory import read_memory, write_memory
from megatron_rl.batch.ragged import Ragged
from megatron_rl.buffer import GroupBuffer, waiting_rollouts
from megatron_rl.pipeline import chain
from megatron_rl.ports import Context
from megatron_rl.samplers.screening import Screening
from megatron_rl.stages.screen import Screen
from tests.fakes.tabular import NumberedPrompts

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_vectors.json").read_text())["algorithms"]["speed_rl"]
(TRACE,) = [case for case in GOLDEN if case["op"] == "speed_trace"]


class Letters(NumberedPrompts):
    def __init__(self, ids: list[str]) -> None:
        self.ids = ids


class Machine:
    """Sampler, stage and buffer as the loop puts them together, with outcomes given by `correct(prompt, slot)`."""

    def __init__(self, sampler, stage, prompts, correct, fails=lambda: False):
        self.sampler, self.prompts, self.correct, self.fails = sampler, prompts, correct, fails
        self.stage, self.failed = chain([("screen", stage)]), None
        self.buffer = GroupBuffer(prompts=sampler.prompts)
        self.memory, self.buffered, self.version = None, None, 0
        self.events, self.waves = [], 0

    def context(self):
        return Context(step=self.version, version=self.version, seed=0, machines={"prompts": self.prompts})

    def collect(self):
        wave, memory = self.sampler.draw(self.memory, self.context())
        outcome = [self.correct(p, s) for p, s in zip(wave[PROMPT_ID], wave[SLOT].tolist(), strict=True)]
        one_B = torch.ones(len(wave), dtype=torch.int64)
        judged = wave.with_columns(
            correct=outcome,
            status=["failed" if self.fails() else "ok" for _ in outcome],
            version=one_B * self.version,
            loss_mask=Ragged.from_lengths(one_B, one_B),
        )
        names = {
            phase: list(dict.fromkeys(p for p, at in zip(wave[PROMPT_ID], wave[PHASE], strict=True) if at == phase))
            for phase in ("screen", "continue")
        }
        self.events.append({"kind": "generate", **names, "rollouts": len(wave)})
        memories = {"screening": memory, "failed": self.failed}
        passed, memories = self.stage(judged, memories, self.context())
        self.memory = self.sampler.observe(passed, memories["screening"], self.context())
        self.failed = memories.get("failed")
        self.buffered = self.buffer.push(self.buffered, passed)
        self.waves += 1

    def next_batch(self):
        while True:
            batch, self.buffered = self.buffer.take(self.buffered, self.version)
            if batch is not None:
                self.version += 1
                groups = {group[PROMPT_ID][0]: group[CORRECT].tolist() for group in batch.groups()}
                self.events.append({"kind": "train", "prompts": list(groups), "groups": list(groups.values())})
                return batch
            self.collect()


def test_the_golden_trace_event_for_event():
    given, expected = TRACE["inputs"], TRACE["expected"]
    outcomes = {prompt["id"]: prompt["screen"] + prompt["cont"] for prompt in given["prompts"]}
    sampler = Screening(
        prompts=given["train_batch"],
        screened=given["gen_batch"],
        screen=given["n_init"],
        more=given["n_cont"],
        shuffle=False,
    )
    machine = Machine(sampler, Screen(), Letters(list(outcomes)), lambda prompt, slot: outcomes[prompt][slot])
    for _ in range(given["steps"]):
        machine.next_batch()
    assert machine.events == expected["events"]
    assert list(dict.fromkeys(machine.memory["pending"][PROMPT_ID])) == expected["pending_at_end"]
    assert list(dict.fromkeys(machine.buffered["waiting"][PROMPT_ID])) == expected["ready_at_end"]
    assert machine.memory["drawn"] == expected["prompts_consumed"]


def noisy(seed=0):
    draw = np.random.default_rng(seed)
    return lambda prompt, _: int(draw.random() < (int(prompt[1:]) % 10) / 9)


def simulated(steps, at_every_step=lambda _: None, **changes):
    machine = Machine(
        Screening(**({"prompts": 4, "screened": 8, "screen": 3, "more": 5} | changes)),
        Screen(),
        NumberedPrompts(50),
        noisy(),
    )
    for _ in range(steps):
        batch = machine.next_batch()
        assert torch.bincount(batch.group_index()).tolist() == [8] * 4
        for group in batch.groups():
            screening = group.where(torch.tensor([phase == "screen" for phase in group[PHASE]]))
            assert 0 < int(screening[CORRECT].sum()) < 3
            assert group[SLOT].tolist() == list(range(8))
        at_every_step(machine)
    return machine


def unaccounted(machine):
    """Prompts drawn less those rejected, pending, ready, trained and expired, at this moment."""
    pending, counts = machine.memory["pending"], machine.buffered
    waiting = 0 if pending is None else len(pending) // 3
    rejected, trained, ready = counts["filtered"] // 3, counts["yielded"] // 8, waiting_rollouts(counts) // 8
    return machine.memory["drawn"] - rejected - waiting - ready - trained - machine.memory["expired"]


class CountsGroups(GroupBuffer):
    """Remembers which groups it was given, and which of them are not to be trained on."""

    seen: ClassVar[dict[int, bool]] = {}

    def push(self, memory, wave):
        self.seen.update(zip(wave[GROUP].tolist(), wave[KEPT].tolist(), strict=True))
        return super().push(memory, wave)


def test_screened_prompts_are_rejected_pending_ready_or_trained_at_every_one_of_a_thousand_steps():
    left_over = []
    machine = simulated(1000, at_every_step=lambda machine: left_over.append(unaccounted(machine)))
    assert left_over == [0] * 1000
    assert machine.memory["drawn"] > 4000


def test_where_rollouts_fail_prompts_are_failed_too_and_none_is_missing_at_any_step():
    draw = np.random.default_rng(1)
    sampler = Screening(prompts=4, screened=8, screen=3, more=5, max_age=3)
    machine = Machine(sampler, Screen(), NumberedPrompts(50), noisy(), lambda: draw.random() < 0.5)
    machine.buffer, trained = CountsGroups(prompts=4), 0
    machine.buffer.seen.clear()
    for _ in range(60):
        batch = machine.next_batch()
        trained += 4
        assert set(batch[STATUS]) == {"ok"}
        for group in batch.groups():
            screening = group.where(torch.tensor([phase == "screen" for phase in group[PHASE]]))
            assert 0 < int(screening[CORRECT].sum()) < len(screening) < len(group)
        pending, waiting = machine.memory["pending"], machine.buffered["waiting"]
        rejected = list(machine.buffer.seen.values()).count(0)
        held = sum(len(set(rows[GROUP].tolist())) for rows in (pending, waiting) if rows is not None)
        left = machine.memory["screened"] - rejected - held - trained - machine.memory["expired"]
        assert left == 0
    failed = machine.memory["drawn"] - machine.memory["screened"]
    wave, _ = machine.sampler.draw(machine.memory, machine.context())
    assert wave.metrics["screening/failed"] == failed > 0


def test_a_memory_of_before_failed_prompts_were_counted_has_none():
    memory = {"drawn": 5, "pending": None, "expired": 0}
    context = Context(step=0, version=0, seed=0, machines={"prompts": NumberedPrompts(9)})
    wave, memory = Screening().draw(memory, context)
    assert wave.metrics["screening/failed"] == 0
    assert memory["screened"] == 5


def test_training_order_is_acceptance_order():
    machine = simulated(50)
    continued = [prompt for event in machine.events if event["kind"] == "generate" for prompt in event["continue"]]
    trained = [prompt for event in machine.events if event["kind"] == "train" for prompt in event["prompts"]]
    assert trained == continued[: len(trained)]


def test_accepted_prompts_that_wait_too_long_are_dropped_and_counted():
    machine = Machine(
        Screening(prompts=4, screened=8, screen=3, more=5, max_age=2), Screen(), NumberedPrompts(50), noisy()
    )
    machine.collect()
    waiting = len(machine.memory["pending"].groups())
    machine.version = 3
    wave, memory = machine.sampler.draw(machine.memory, machine.context())
    assert set(wave[PHASE]) == {"screen"}
    assert memory["expired"] == wave.metrics["screening/expired"] == waiting > 0


def test_a_restart_in_the_middle_goes_on_as_if_nothing_had_happened(tmp_path):
    outcome = lambda prompt, slot: int((hash_of(prompt) * 31 + slot * 17) % 5 < 2)  # noqa: E731
    make = lambda: Machine(Screening(prompts=4, screened=8, screen=3, more=5), Screen(), NumberedPrompts(50), outcome)  # noqa: E731
    straight, broken = make(), make()
    for _ in range(6):
        straight.next_batch()
    for _ in range(3):
        broken.next_batch()
    write_memory({"sampler": broken.memory, "buffer": broken.buffered}, tmp_path)
    resumed, again = make(), read_memory(tmp_path)
    resumed.memory, resumed.buffered, resumed.version = again["sampler"], again["buffer"], broken.version
    for _ in range(3):
        resumed.next_batch()
    assert broken.events + resumed.events == straight.events


def hash_of(prompt):
    return int(prompt[1:]) * 7919


@pytest.mark.parametrize("wrong", [{"screen": 1}, {"more": 0}])
def test_settings_that_cannot_screen_are_refused(wrong):
    with pytest.raises(ValueError, match="at least"):
        Screening(**wrong)


def test_continuations_carry_their_prompt_group_and_next_slots():
    machine = Machine(
        Screening(prompts=4, screened=4, screen=2, more=3), Screen(), NumberedPrompts(9), lambda _, slot: slot % 2
    )
    machine.collect()
    wave, _ = machine.sampler.draw(machine.memory, machine.context())
    continued = wave.where(torch.tensor([phase == "continue" for phase in wave[PHASE]]))
    assert isinstance(continued, Batch)
    assert sorted(set(continued[GROUP].tolist())) == [0, 1, 2, 3]
    assert continued[SLOT].tolist() == [2, 3, 4] * 4
    assert {VERSION.name, LOSS_MASK.name}.isdisjoint(wave.table.column_names)
