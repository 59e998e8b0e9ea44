import io
from dataclasses import replace

import pytest
from rich.console import Console

from megatron_rl.batch.columns import RESPONSE_TEXT
from megatron_rl.telemetry.console import ConsoleView, printable
from megatron_rl.telemetry.points import Totals
from megatron_rl.telemetry.sink import RunFacts
from tests.fakes.run_folder import evaluation, rollout_batch, step_record


def show(tmp_path, *, terminal, width=100, steps=3, sample_every=0, response=None):
    seconds = iter(range(10_000))
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, color_system=None)
    view = ConsoleView(console=console, clock=lambda: float(next(seconds)), sample_every=sample_every)
    view.start(RunFacts(folder=tmp_path / "toy", step=0, steps=steps))
    for step in range(1, steps + 1):
        batch = rollout_batch(step, groups=1, samples=2)
        if response is not None:
            batch = batch.with_columns({RESPONSE_TEXT: [response] * len(batch)})
        for done in range(3):
            view.wave(done, 2, 30 * done)
        view.step(Totals().point(step_record(step), batch, tokens=60), batch)
    view.evaluation(evaluation(steps))
    view.close("finished")
    return console.file.getvalue()


def test_a_log_gets_one_plain_line_a_step(tmp_path):
    text = show(tmp_path, terminal=False, width=40)
    assert "\x1b" not in text
    assert [line.split("  ")[0] for line in text.splitlines() if line.startswith("step ")] == [
        "step 1/3",
        "step 2/3",
        "step 3/3",
    ]


@pytest.mark.parametrize("width", [34, 80, 200])
def test_a_terminal_gets_a_heading_once_and_a_line_a_step(tmp_path, width):
    text = show(tmp_path, terminal=True, width=width)
    assert text.count("reward") == 1
    assert all(f"\n   {step} " in text or f"   {step} " in text for step in (1, 2, 3))


def test_the_wave_shows_requests_and_tokens_a_second(tmp_path):
    text = show(tmp_path, terminal=True)
    assert "2/2" in text
    assert "tokens/s" in text


def test_an_evaluation_is_one_line_a_source_with_its_intervals(tmp_path):
    lines = [
        line for line in show(tmp_path, terminal=False).splitlines() if line.startswith("evaluation after step 3: ")
    ]
    assert [line.split()[4] for line in lines] == ["arithmetic", "knights"]
    assert all(line.count("%, ") == 3 for line in lines)


def test_rollouts_that_failed_are_told_with_a_reason(tmp_path):
    view = ConsoleView(console=Console(file=io.StringIO(), width=200, color_system=None), sample_every=0)
    view.start(RunFacts(folder=tmp_path / "toy", step=0, steps=9))
    batch = rollout_batch(1, groups=1, samples=2)
    failed = batch.with_columns(status=["ok", "failed"], error=["", "the engine died\nin the middle"])
    view.step(Totals().point(step_record(1), failed, tokens=60), failed)
    found = evaluation(1)
    view.evaluation(replace(found, metrics={**found.metrics, "knights/failed": 3.0, "knights/short_prompts": 2.0}))
    text = view._console.file.getvalue()
    assert "after step 1: 1 rollouts failed and were left out; one says: the engine died\n" in text
    assert "evaluation after step 1: knights  3 answers failed and were left out, of 2 prompts\n" in text


def test_a_sample_cannot_steer_the_terminal_nor_use_markup(tmp_path):
    text = show(tmp_path, terminal=True, sample_every=3, response="[red]hello[/red] \x1b]0;owned\x07 \u202eback")
    assert "[red]hello[/red]" in text
    assert "\x1b]0;owned" not in text
    assert "\u202e" not in text
    assert "a rollout of step 3" in text


def test_printable_keeps_line_ends_and_letters():
    assert printable("añ 数\n\t\x07") == "añ 数\n\t\\x07"
