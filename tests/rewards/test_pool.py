import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from megatron_rl.answers import Question
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ANSWER, CORRECT, EXTRA, EXTRACTED, RESPONSE_TEXT, REWARD, SOURCE, TOKENS, VERDICT
from megatron_rl.batch.ragged import Ragged
from megatron_rl.rewards.pool import JudgeSettings, RewardPool, questions_of
from tools.hard_answers import hard, ordinary

MATH = "megatron_rl.rewards.math:Math"
MOODY = "tests.rewards.own_rewards:moody"
QUICK = JudgeSettings(processes=2, deadline_s=1.0)


@pytest.fixture(scope="module")
def maths():
    with RewardPool(MATH, {}, QUICK) as pool:
        yield pool


@pytest.fixture(scope="module")
def moody():
    with RewardPool(MOODY, {}, JudgeSettings(processes=2, deadline_s=0.6, memory_mib=256)) as pool:
        yield pool


def asked(*responses, answer="yes"):
    return [Question(response=response, answer=answer) for response in responses]


def verdicts(pool, *responses):
    return [each.verdict for each in pool.grade(asked(*responses))]


def test_each_row_gets_its_reward_verdict_and_extracted_answer(maths):
    batch = Batch.of(
        {RESPONSE_TEXT: [r"\boxed{0.5}", r"\boxed{2}", "no idea", r"\boxed{9^{9^{9^{9}}}}"], ANSWER: [r"\frac12"] * 4}
    )
    judged = maths.judge(batch)
    assert judged.strings(VERDICT) == ["right", "wrong", "unparsable", "timeout"]
    assert judged.numbers(REWARD).tolist() == [1, 0, 0, 0]
    assert judged.numbers(CORRECT).tolist() == [1, 0, 0, 0]
    assert judged.strings(EXTRACTED)[1:] == ["2", "", ""]
    assert judged.metrics["judge/timeout"] == judged.metrics["judge/unparsable"] == 0.25
    assert judged.metrics["judge/alarm"] == 1.0


def test_only_the_offender_is_blamed(moody):
    said = ["yes", "sleep", "yes", "die", "raise", "yes", "not a number", "no", "eat memory", "yes"]
    expected = ["right", "timeout", "right", "crashed", "crashed", "right", "crashed", "wrong", "crashed", "right"]
    assert verdicts(moody, *said) == expected


def test_what_cannot_be_graded_scores_as_silence_does(moody):
    graded = moody.grade(asked("sleep", "die", "raise", ""))
    assert [each.score.reward for each in graded] == [-1.0] * 4
    assert "no good" in graded[2].error


def test_grades_do_not_depend_on_the_number_of_processes_nor_on_order():
    questions = ordinary(30)
    # A deadline that no busy machine makes anyone miss.
    with RewardPool(MATH, {}, JudgeSettings(processes=1, deadline_s=60.0)) as alone:
        one = [each.score for each in alone.grade(questions)]
    with RewardPool(MATH, {}, JudgeSettings(processes=2, deadline_s=60.0)) as together:
        assert [each.score for each in together.grade(questions)] == one
        assert [each.score for each in together.grade(questions[::-1])] == one[::-1]
    assert {each.correct for each in one} == {0, 1}


def test_a_reward_that_forks_answers_once(moody):
    assert verdicts(moody, "fork", "yes", "fork") == ["wrong", "right", "wrong"]
    assert verdicts(moody, "yes", "yes") == ["right", "right"]


def test_a_reward_that_leaked_all_its_files_takes_no_other_answer_with_it(moody):
    assert verdicts(moody, "leak files", "leak files") == ["crashed", "crashed"]
    assert verdicts(moody, "read a file", "read a file") == ["wrong", "wrong"]


def test_a_grader_killed_from_outside_costs_nobody_a_grade(moody):
    before = moody.pids
    for pid in before[1:]:
        os.kill(pid, signal.SIGKILL)
    assert verdicts(moody, *["yes"] * 6) == ["right"] * 6
    assert moody.pids[0] == before[0]
    assert not set(moody.pids[1:]) & set(before[1:])


def test_what_a_killed_grader_had_started_dies_with_it(moody):
    others = set(psutil.Process(moody.pids[0]).children(recursive=True))
    assert verdicts(moody, "sleep with a child") == ["timeout"]
    left = [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", "600"]]
    assert left == []
    assert len(set(psutil.Process(moody.pids[0]).children())) == len(others)


def test_a_helper_serves_many_answers_and_ends_with_its_grader_however_it_hides():
    with RewardPool(MOODY, {}, JudgeSettings(processes=1, deadline_s=60.0)) as pool:
        first, second = (int(each.score.extracted) for each in pool.grade(asked("daemon 1", "daemon 2")))
        assert verdicts(pool, "yes", "no") == ["right", "wrong"]
        assert psutil.pid_exists(first)
        assert psutil.pid_exists(second)
        assert verdicts(pool, "die") == ["crashed"]
        assert not psutil.pid_exists(first)
        assert not psutil.pid_exists(second)
        third = int(pool.grade(asked("daemon 3"))[0].score.extracted)
    assert not psutil.pid_exists(third)


@pytest.mark.slow
def test_a_server_of_the_reward_s_own_outlives_graders_and_ends_with_the_pool_whatever_holds_that_up():
    settings = JudgeSettings(processes=1, deadline_s=60.0)
    with RewardPool("tests.rewards.own_rewards:Lingers", {}, settings) as pool:
        server = int(pool.grade(asked("yes"))[0].score.extracted)
        assert verdicts(pool, "die") == ["crashed"]
        assert psutil.pid_exists(server)
    assert not any(psutil.pid_exists(pid) for pid in (server, *pool.pids))


def test_a_helper_ends_with_its_own_grader_and_with_no_other(tmp_path):
    with RewardPool(MOODY, {}, JudgeSettings(processes=2, deadline_s=2.5)) as pool:
        helper, number = int(pool.grade(asked("daemon"))[0].score.extracted), tmp_path / "number"
        pool._seats.reverse()  # the other grader is asked
        assert [each.verdict for each in pool.grade(asked("sleep with a daemon", answer=str(number)))] == ["timeout"]
        assert not psutil.pid_exists(int(number.read_text()))
        assert psutil.pid_exists(helper)


def test_a_grader_that_prints_without_end_is_killed_in_time_and_fills_no_log():
    program = (
        "from megatron_rl.rewards.pool import *\n"
        f"with RewardPool({MOODY!r}, {{}}, JudgeSettings(processes=2, deadline_s=1)) as pool:\n"
        "    said = ('print', 'print without end', 'yes')\n"
        "    print([pool.grade([Question(response=one, answer='yes')])[0].verdict for one in said])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout == "['wrong', 'timeout', 'right']\n"
    assert "chatter\n" in run.stderr
    assert run.stderr.count("\n--- left out what graders print beyond 64 KiB in 60 s, or faster than it is read\n") == 1
    assert len(run.stderr) < 70_000


def test_graders_import_neither_torch_nor_arrow_and_their_prints_go_nowhere_near_the_answers(moody, capfd):
    torchless, printed = moody.grade(asked("torch?", "print"))
    assert torchless.score.extracted == "[]"
    assert printed.verdict == "wrong"
    assert "chatter" not in capfd.readouterr().out


def test_a_response_longer_than_the_cap_is_read_from_its_end():
    with RewardPool(MOODY, {}, JudgeSettings(processes=1, most_characters=3)) as pool:
        assert [each.score.extracted for each in pool.grade(asked("never mind, yes"))] == ["yes"]


def test_a_batch_that_mostly_cannot_be_graded_stops_the_run_with_the_first_reason(moody):
    batch = Batch.of({RESPONSE_TEXT: ["raise"] * 32, ANSWER: ["yes"] * 32})
    with pytest.raises(RuntimeError, match=r"graded only 0% of 32 answers .* no good.*judge\.stop_share"):
        moody.judge(batch)


def test_small_batches_are_taken_together_and_one_that_is_graded_well_is_no_reason_to_stop():
    two = Batch.of({RESPONSE_TEXT: ["raise", "raise"], ANSWER: ["yes"] * 2})
    many = Batch.of({RESPONSE_TEXT: ["yes"] * 40, ANSWER: ["yes"] * 40})
    with RewardPool(MOODY, {}, QUICK) as pool:
        for _ in range(15):
            assert pool.judge(two).metrics["judge/alarm"] == 1.0
        pool.judge(many)
        for _ in range(15):
            pool.judge(two)
        with pytest.raises(
            RuntimeError, match=r"graded only 0% of 32 answers \(0 timeouts, 32 crashes; the first: .*no good"
        ):
            pool.judge(two)


def test_the_alarm_is_quiet_while_few_time_out(moody):
    batch = Batch.of({RESPONSE_TEXT: ["yes"] * 31 + ["raise"], ANSWER: ["yes"] * 32})
    assert moody.judge(batch).metrics["judge/alarm"] == 0.0


def test_a_reward_that_cannot_be_built_is_named():
    with (
        RewardPool("tests.rewards.own_rewards:nobody", {}, QUICK) as pool,
        pytest.raises(RuntimeError, match=r"own_rewards:nobody cannot be built: .*nobody"),
    ):
        pool.grade(asked("yes"))


def test_the_reward_sees_source_extra_and_length():
    batch = Batch.of(
        {
            RESPONSE_TEXT: ["a", "b"],
            ANSWER: ["a", "a"],
            SOURCE: ["s", "t"],
            EXTRA: ['{"level": 3}', ""],
            TOKENS: Ragged.of([[1, 2], []]),
        }
    )
    first, second = questions_of(batch)
    assert (first.source, first.extra, first.length) == ("s", {"level": 3}, 2)
    assert (second.source, second.extra, second.length) == ("t", {}, 0)


def test_no_process_outlives_a_driver_that_is_killed():
    program = (
        "from megatron_rl.rewards.pool import *; import os, time\n"
        f"p = RewardPool({MOODY!r}, {{}}, JudgeSettings(processes=2, deadline_s=60))\n"
        "helper = p.grade([Question(response='daemon', answer='')])[0].score.extracted\n"
        "print(helper, *p.pids, flush=True)\n"
        "p.grade([Question(response='sleep', answer='yes')])"
    )
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    driver.kill()
    driver.wait()
    assert len(pids) == 4
    for _ in range(100):
        if not any(psutil.pid_exists(pid) for pid in pids):
            break
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_closing_ends_every_process():
    with RewardPool(MOODY, {}, QUICK) as pool:
        pool.grade(asked("yes"))
        pids = pool.pids
    assert not any(psutil.pid_exists(pid) for pid in pids)


def assault(count, settings, canary):
    """Grades of so many hard answers, how much longer ordinary ones take right afterwards, and the graders left.

    Afterwards the pool still tells right from wrong.
    """
    with RewardPool(MATH, {}, settings) as pool:
        normal = ordinary(120)
        pool.grade(normal)
        before = time.monotonic()
        pool.grade(normal)
        usual = time.monotonic() - before
        graded = pool.grade(hard(count, canary))
        before = time.monotonic()
        again = pool.grade(normal)
        after = time.monotonic() - before
        assert {"right", "wrong"} <= {each.verdict for each in again}
        processes = len(psutil.Process(pool.pids[0]).children(recursive=True))
    return graded, after / usual, processes


def test_answers_made_to_break_it_are_over_by_the_deadline_and_run_nothing(tmp_path):
    graded, _, processes = assault(40, JudgeSettings(processes=2, deadline_s=0.4), tmp_path / "canary")
    assert not list(tmp_path.iterdir())
    assert {each.verdict for each in graded} <= {"wrong", "unparsable", "timeout", "crashed", "right"}
    assert {"timeout", "unparsable"} <= {each.verdict for each in graded}
    assert sum(each.verdict == "crashed" for each in graded) <= 4
    assert processes == 2


@pytest.mark.slow
def test_a_thousand_of_them_cost_no_more_than_the_deadline_each_and_leave_nothing_behind(tmp_path):
    settings = JudgeSettings(processes=2, deadline_s=2.0)
    graded, slowdown, processes = assault(1000, settings, tmp_path / "canary")
    seconds = sorted(each.seconds for each in graded)
    print(f"p99 {seconds[989]:.3f} s, worst {seconds[-1]:.3f} s, ordinary answers took {slowdown:.2f} times as long")
    assert not list(tmp_path.iterdir())
    assert seconds[989] <= settings.deadline_s + 0.1
    assert processes == 2


@pytest.mark.slow
def test_ten_thousand_answers_leak_neither_memory_nor_descriptors():
    with RewardPool(MATH, {}, QUICK) as pool:
        pool.grade(ordinary(500))
        family = [psutil.Process(), psutil.Process(pool.pids[0])]
        before = [(each.memory_info().rss, each.num_fds()) for each in family]
        for _ in range(20):
            pool.grade(ordinary(500))
        after = [(each.memory_info().rss, each.num_fds()) for each in family]
        assert len(family[1].children()) == 2
    for (rss_before, fds_before), (rss_after, fds_after) in zip(before, after, strict=True):
        assert fds_after == fds_before
        assert rss_after <= rss_before + (16 << 20)
