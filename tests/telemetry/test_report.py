import json
import re

import pytest

from megatron_rl.telemetry.excerpts import Bounds
from megatron_rl.telemetry.report import report, report_data
from tests.fakes.chromium import drawn, driven
from tests.fakes.run_folder import WICKED, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [write_run(root / "grpo", steps=30, wicked=True), write_run(root / "jspo", steps=24, speed=0.3, seed=1)]


@pytest.fixture(scope="module")
def written(runs):
    return report(runs, runs[0].parent / "report.html")


def test_the_data_block_holds_every_step_of_every_run(written):
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', written.read_text(), re.DOTALL)[1]
    data = json.loads(block)
    assert [(run["name"], run["step"]) for run in data["runs"]] == [
        ("grpo", list(range(1, 31))),
        ("jspo", list(range(1, 25))),
    ]
    titles = [panel["title"] for panel in data["learning"]]
    assert titles[:5] == ["Reward", "Right answers", "Response length", "Entropy", "KL"]
    assert len(data["parity"]) == 3
    assert "shrinkage" in data["rest"]
    assert set(data["runs"][0]["phases"]) == {"collect", "learn", "update", "publish"}


def test_the_file_is_whole_and_bounded(written, runs):
    assert written.stat().st_size < 1_500_000
    small = report(runs, written.with_name("small.html"), Bounds(steps=1, groups=1))
    assert small.stat().st_size < written.stat().st_size / 3
    assert not list(written.parent.glob("*.partial"))


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / seed / "toy", steps=1) for seed in ("seed_0", "seed_1")]
    names = [run["name"] for run in report_data(folders, Bounds())["runs"]]
    assert names == ["seed_0/toy", "seed_1/toy"]


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one run folder"):
        report([], tmp_path / "report.html")


def test_a_run_without_rollouts_or_evaluations_has_a_report(tmp_path):
    folder = write_run(tmp_path / "toy", steps=1)
    for path in (folder / "rollouts").iterdir():
        path.unlink()
    assert report([folder], tmp_path / "report.html").exists()


@pytest.mark.chromium
def test_a_browser_draws_every_point_and_reports_no_error(written):
    document, console = drawn(written)
    assert console == []
    assert 'data-ready="yes"' in document
    assert 'data-errors="0"' in document
    reward = re.search(r'<figure class="card"[^>]*data-panel="reward/mean".*?</figure>', document, re.DOTALL)[0]
    assert re.findall(r'data-run="(\w+)" data-points="(\d+)"', reward) == [("grpo", "30"), ("jspo", "24")]
    held_out = re.search(
        r'<figure class="card"[^>]*data-panel="evaluation/arithmetic/pass@1".*?</figure>', document, re.DOTALL
    )[0]
    assert re.findall(r'data-run="(\w+)" data-points="(\d+)"', held_out) == [("grpo", "7"), ("jspo", "7")]
    for name in ("parity/mean", "parity/p99", "parity/max", "shrinkage/weight_mean", "time/grpo", "time/jspo"):
        assert f'data-panel="{name}"' in document


@pytest.mark.chromium
def test_a_wicked_response_is_shown_and_not_obeyed(written):
    document, _ = drawn(written)
    assert "<title>grpo · jspo</title>" in document
    assert "<img" not in document
    shown = WICKED.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert shown in document


@pytest.mark.chromium
def test_the_address_chooses_axis_and_samples(written):
    document, console = drawn(written, address="#axis=tokens&smooth=0.9&hidden=1&at=all&verdict=timeout")
    assert console == []
    assert re.search(r'aria-checked="true">tokens<', document)
    assert re.search(r'class="verdict timeout"', document)
    reward = re.search(r'<figure class="card"[^>]*data-panel="reward/mean".*?</figure>', document, re.DOTALL)[0]
    assert re.findall(r'data-run="(\w+)"', reward) == ["grpo"]


@pytest.mark.chromium
@pytest.mark.parametrize("width", [390, 1600])
def test_it_fits_its_window_and_answers_to_pointer_and_keys(written, tmp_path, width):
    script = """
      setTimeout(() => {
        const said = { overflow: document.documentElement.scrollWidth - innerWidth };
        const plot = document.querySelector('[data-panel="reward/mean"] .plot'), box = plot.getBoundingClientRect();
        const over = { clientX: box.right - 14, clientY: box.top + 20, bubbles: true };
        plot.dispatchEvent(new PointerEvent('pointermove', over));
        said.tip = document.querySelector('body > .tip').innerText;
        said.crosses = document.querySelectorAll('.cross').length;
        plot.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft' }));
        said.left = document.querySelector('body > .tip .at').innerText;
        const search = document.querySelector('input[type=search]');
        search.value = 'no such words'; search.dispatchEvent(new Event('input'));
        said.found = document.querySelector('.browser > div:last-child').innerText;
        document.querySelectorAll('.run')[1].click();
        said.lines = document.querySelectorAll('[data-panel="reward/mean"] .line[data-run]').length;
        said.errors = document.documentElement.dataset.errors;
        parent.postMessage(JSON.stringify(said), '*');
      }, 400);
    """
    said = json.loads(driven(written, script, width=width, out=tmp_path).replace("&amp;", "&"))
    assert said["overflow"] <= 0
    assert said["tip"].startswith("step 30")
    assert "grpo" in said["tip"]
    assert said["crosses"] > 10
    assert said["left"] == "step 29"
    assert said["found"] == "No rollout matches."
    assert said["lines"] == 1
    assert said["errors"] == "0"
