"""The command lines of the documentation, and how each is known to work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HOME = Path(__file__).parents[1]
PAGES = [
    *sorted(path for path in (HOME / "docs").rglob("*.md") if path.name != "reference.md"),
    *sorted((HOME / "examples").glob("*/README.md")),
    *(HOME / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
]
PROGRAMS = (
    *(
        "megatron-rl",
        "python",
        "python3",
        "pip",
        "make",
        "pytest",
        "bash",
        "sh",
        "tools/",
        "examples/",
        "slurm/",
        ".ci/",
    ),
    *("sbatch", "srun", "salloc", "scancel", "squeue", "ray", "torchrun", "docker", "apptainer", "nvidia-smi", "nsys"),
    *("hf", "vllm", "lm_eval", "lighteval", "git", "cp", "mv", "ln", "mkdir", "export", "curl", "wget", "ssh", "tail"),
    *("cat", "less", "tar", "kill", "sudo", "apt-get", "source", "conda", "uv", "mkdocs", "wandb", "tensorboard"),
)
"""What a line that is a command begins with."""


class Command(NamedTuple):
    """A command line where it stands."""

    page: Path
    words: str
    """Without the environment's folder and a comment: "megatron-rl report runs/quickstart"."""
    near: str
    """The paragraphs before, around and after it."""


def commands() -> Iterator[Command]:
    """Every indented line, and inline code of several words, that begins with a program."""
    for page in PAGES:
        text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
        paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
        for place, paragraph in enumerate(paragraphs):
            near = "\n".join(paragraphs[max(0, place - 1) : place + 2])
            lines = re.findall(r"^ {4}(\S.*)$", paragraph, re.MULTILINE)
            said = re.findall(r"`([^`]+)`", re.sub(r"(?m)^ {4}.*$", "", paragraph))
            for line in (*lines, *(code for code in said if re.search(r"^(?!megatron-rl [\w-]+$)\S+ ", code))):
                if words := as_command(line):
                    yield Command(page=page, words=words, near=near)


def as_command(line: str) -> str:
    """The line as it is typed, without what a shell leaves out; empty where it is no command."""
    told = re.sub(r"^(?:\w+=\S+ )*(?:\.venv/bin/)?", "", re.sub(r"\s+# .*$", "", line).strip())
    first = told.split()[0] if told else ""
    is_program = first in PROGRAMS or any(first.startswith(each) for each in PROGRAMS if each.endswith("/"))
    return told if is_program and len(told.split()) + first.startswith("tools/") > 1 else ""


class Rule(NamedTuple):
    """How the commands that match are known to work: `here`, `needs` said beside them, or a test of the suite."""

    pattern: str
    here: str = ""
    """The function of tests/test_documented_commands.py that executes it."""
    test: str = ""
    """The test that executes it: "tests/test_configs.py::test_it_trains_and_a_stop_changes_nothing"."""
    needs: str = ""
    """A word that stands beside it and says what this machine may lack."""


RULES = (
    Rule(r"megatron-rl (train|convert) --help", here="helps"),
    Rule(r"megatron-rl train configs/\w+\.yaml .*--dry-run", here="runs"),
    Rule(r"megatron-rl train configs/quickstart\.yaml rollout=vllm .*", here="trains_with_vllm", needs="vLLM"),
    Rule(r"megatron-rl train configs/(speed|grpo)\.yaml .+", here="trains"),
    Rule(
        r"megatron-rl train configs/\w+\.yaml", test="tests/test_configs.py::test_it_trains_and_a_stop_changes_nothing"
    ),
    Rule(r"megatron-rl values .*", test="tests/commands/test_values.py::test_every_prompt_is_valued_once"),
    Rule(r"megatron-rl verify-resume \S+ --steps 50", here="verifies"),
    Rule(
        r"megatron-rl verify-resume .*",
        test="tests/commands/test_verify_resume.py::test_a_sound_run_is_proved_and_its_scratch_removed",
    ),
    Rule(r"megatron-rl (report|evaluate|replay|bundle|doctor)\b.*", here="runs"),
    Rule(r"megatron-rl convert .*", here="runs"),
    Rule(r"megatron-rl data .*", here="converts_data"),
    Rule(r"megatron-rl plan .*", here="plans"),
    Rule(r"cp downloads/.* data/.*", here="copies"),
    Rule(r"sbatch .*slurm/\w+\.sbatch .*", here="rehearses_a_job", needs="cluster"),
    Rule(r"bash slurm/\w+\.sbatch .* --dry-run", here="rehearses_a_job"),
    Rule(r"sbatch --export|slurm/attach\.sh JOB", needs="cluster|inside the job"),
    Rule(r"scancel JOB", test="tests/slurm/test_jobs.py::test_a_job_that_is_cancelled_ends_for_good_and_says_so"),
    Rule(
        r"scancel --batch --signal=USR1 JOB",
        test="tests/slurm/test_jobs.py::test_a_run_over_two_nodes_is_signalled_requeued_and_ends_as_one_that_never_was",
    ),
    Rule(r"python tools/tiny_recipe\.py examples/Qwen3-4B/.*", here="runs_a_recipe_tiny"),
    Rule(
        r"python tools/tiny_recipe\.py .*",
        test="tests/tools/test_tiny_recipe.py::test_it_trains_two_steps_that_are_right_now_and_then",
    ),
    Rule(
        r"python tools/merge_lora\.py .*",
        test="tests/tools/test_merge_lora.py::test_the_base_is_written_with_its_changes_and_the_exit_code_tells",
    ),
    Rule(
        r"python tools/bench_convert\.py",
        test="tests/tools/test_bench_convert.py::"
        "test_each_way_at_each_layout_stands_beside_a_plain_copy_with_its_memory",
    ),
    Rule(r"python -m tools\.bench_ahead", here="measures_lagging"),
    Rule(
        r"python -m tools\.bench_in_flight",
        test="tests/tools/test_bench_in_flight.py::test_waves_and_runs_are_measured_with_vllm",
        needs="vLLM",
    ),
    Rule(
        r"tools/bench_algorithms\.py jspo.*",
        test="tests/tools/test_bench_algorithms.py::test_the_smallest_claim_becomes_a_page_and_is_not_measured_twice",
    ),
    Rule(
        r"tools/bench_algorithms\.py \w+.*",
        test="tests/tools/test_bench_algorithms.py::test_every_claim_becomes_a_page",
    ),
    Rule(
        r"python examples/grpo_in_one_file\.py",
        test="tests/examples/test_grpo_in_one_file.py::test_three_steps_change_the_weights_and_are_repeatable",
    ),
    Rule(r"make quickstart", here="makes_the_quickstart"),
    Rule(r"make (test|vllm-cpu)", here="is_what_integration_runs"),
    Rule(r"make (check|test-slow)", needs="the tests"),
    Rule(r"make chaos", test="tests/test_chaos.py::test_a_run_goes_on_after_every_fault_as_if_nothing_had_happened"),
    Rule(r"make docs", needs="network"),
    Rule(
        r"vllm serve .*|python -m vllm\.entrypoints\.openai\.api_server .*",
        test="tests/contracts/test_elsewhere.py::test_greedy_completions_of_the_server_are_those_of_our_engine",
    ),
    Rule(r"(lm_eval|lighteval|pip install \"huggingface_hub).*", needs=r"lighteval 0\.13\.0|programs\s+installed"),
    Rule(r"hf download .*", needs="network"),
    Rule(r"pip install -e '\.\[gpu\]'|tools/gpu_check\.sh.*", needs="GPU"),
    Rule(r"pip freeze", needs="requirements/cpu.lock"),
)
"""The first that matches counts."""


def rule_of(words: str) -> Rule | None:
    return next((rule for rule in RULES if re.fullmatch(rule.pattern, words)), None)
