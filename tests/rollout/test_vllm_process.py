import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from megatron_rl import logs
from megatron_rl.batch.columns import ERROR, FINISH, SAMPLER_LOGPROBS, TOKEN_VERSIONS, TOKENS
from megatron_rl.beside import beside
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.reshard.digest import ReceiverLost
from megatron_rl.reshard.ring import memory_folder
from tests.fakes.tiny_models import tiny_folder
from tests.rollout.opening import asked, random_prompts

pytestmark = pytest.mark.vllm

COUNT = 300


def long_wave():
    """Enough to be still at work a moment later."""
    return asked(random_prompts(COUNT, longest=20), budgets=[100] * COUNT)


@contextmanager
def when_writing(engine, act, **patience):
    """Does `act` once tokens have been written, with this patience; afterwards the engine is as it was."""
    scale, seen = engine.scale, threading.Event()

    def progress(done, total, tokens):
        if tokens and not seen.is_set():
            seen.set()
            act()

    engine.progress = progress
    retries = patience.pop("retries", scale.retries)
    engine.scale = replace(scale, retries=retries, patience=replace(scale.patience, **patience))
    try:
        yield
    finally:
        engine.scale, engine.progress = scale, None


def test_a_group_killed_while_it_writes_is_replaced_and_its_requests_are_finished(vllm_serving):
    from tests.rollout.serving import expected_logprobs

    engine = vllm_serving.engine
    pid, restarts = engine.fleet.berths[0].group.pid, engine.fleet.restarts
    with when_writing(engine, lambda: os.kill(pid, signal.SIGKILL)):
        rollouts = engine.generate(long_wave(), Sampling(temperature=0))
    assert engine.fleet.restarts == restarts + 1
    assert engine.fleet.berths[0].group.pid != pid
    assert rollouts.strings(ERROR) == [""] * COUNT
    assert set(rollouts.strings(FINISH)) <= {"stop", "length"}
    # The replacing group went on with the same weights, from where the lost one stood.
    _, likeliest = expected_logprobs(vllm_serving.folder, rollouts)
    assert torch.cat(likeliest).tolist() == rollouts[TOKENS].values.tolist()


def test_a_group_that_hangs_is_ended_at_its_deadline_and_its_requests_fail_by_name(vllm_serving):
    engine = vllm_serving.engine
    pid = engine.fleet.berths[0].group.pid
    with when_writing(engine, lambda: os.kill(pid, signal.SIGSTOP), retries=0, silence_s=10.0):
        rollouts = engine.generate(long_wave())
    failed = [error for error in rollouts.strings(ERROR) if error]
    assert failed
    assert all("was lost with 1 groups: vLLM group 0 said nothing for" in error for error in failed)
    assert len(failed) + sum(1 for finish in rollouts.strings(FINISH) if finish in ("stop", "length")) == COUNT
    # The next version finds a new group in its place.
    vllm_serving.publish(vllm_serving.folder)
    assert engine.generate(asked([[5, 6]])).strings(ERROR) == [""]


def test_at_the_deadline_a_wave_comes_back_with_what_is_written(vllm_serving):
    engine = vllm_serving.engine
    with when_writing(engine, lambda: None, deadline_s=0.5):
        rollouts = engine.generate(long_wave())
    assert rollouts.strings(ERROR) == [""] * COUNT
    cut = [
        len(row)
        for row, finish in zip(rollouts[TOKENS].rows(), rollouts.strings(FINISH), strict=True)
        if finish == "abort"
    ]
    assert cut
    assert all(length < 100 for length in cut)
    assert engine.generate(asked([[5, 6]])).strings(FINISH)[0] in ("stop", "length")


@contextmanager
def stopped(group):
    """Gives what the group was asked so far, which it hears when it goes on."""
    said, say = [], group.say

    def note(command):
        say(command)
        said.append(command["do"])

    group.say = note
    os.kill(group.pid, signal.SIGSTOP)
    try:
        yield said
    finally:
        os.kill(group.pid, signal.SIGCONT)
        group.say = say


def until(is_so):
    ends = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.01)


@contextmanager
def in_flight(engine):
    scale, engine.scale = engine.scale, replace(engine.scale, in_flight=True)
    try:
        yield
    finally:
        engine.scale = scale


@pytest.mark.parametrize("law", [Sampling(), Sampling(temperature=0.7, top_p=0.9)])
def test_after_weights_came_in_the_middle_every_token_has_the_law_of_the_version_it_is_recorded_with(
    vllm_serving, vllm_folder, tmp_path, law
):
    from tests.rollout.serving import differences, expected_logprobs

    engine, first = vllm_serving.engine, vllm_serving.version
    folders = [vllm_folder] + [
        tiny_folder(tmp_path / str(seed), "qwen3", seed=seed, tie_word_embeddings=True) for seed in (5, 6)
    ]
    group, restarts = engine.fleet.berths[0].group, engine.fleet.restarts
    with in_flight(engine):
        # Asked to write and then to receive while it hears nothing, the group draws one token of each in between.
        with stopped(group) as said:
            wave = beside(lambda: engine.generate(asked(random_prompts(60), budgets=[90] * 60), law), "wave")
            until(lambda: "write" in said)
            publishing = beside(lambda: vllm_serving.publish(folders[1]), "publish")
            until(lambda: "receive" in said)
        publishing.result(60)
        vllm_serving.publish(folders[2])  # wherever they are, or after them all
        rollouts = wave.result(240)
    assert rollouts.strings(ERROR) == [""] * 60
    versions, told = rollouts.ragged(TOKEN_VERSIONS), rollouts.ragged(SAMPLER_LOGPROBS)
    assert all(row.tolist() == sorted(row.tolist()) for row in versions.rows())
    assert [row[0] for row in versions.rows()] == [first] * 60
    assert any(len(set(row.tolist())) > 1 for row in versions.rows())
    assert set(versions.values.tolist()) <= {first, first + 1, first + 2}
    for version, folder in enumerate(folders, first):
        gap_T = differences(told.rows(), expected_logprobs(folder, rollouts, law)[0])
        of_it_T = versions.values == version
        # A token at the very edge of what a law keeps may fall on either side of it.
        assert int((~(gap_T[of_it_T] < 1e-4)).sum()) <= (0 if law == Sampling() else 3)
        assert float(gap_T[~of_it_T].nan_to_num(9.0, posinf=9.0).mean()) > 0.1
    assert engine.fleet.restarts == restarts


@pytest.mark.slow
def test_a_group_killed_before_weights_come_in_the_middle_goes_on_with_them(vllm_serving, vllm_folder, tmp_path):
    from tests.rollout.serving import differences, expected_logprobs

    serving, engine, writing = vllm_serving, vllm_serving.engine, threading.Event()
    first, pid = engine.version, engine.fleet.berths[0].group.pid
    newer = tiny_folder(tmp_path, "qwen3", seed=5, tie_word_embeddings=True)
    engine.expect(serving.alone)  # nobody sends once more what the actor has left behind

    def wait_for_weights():
        """More requests than the group holds are asked for, so that some are left for the version that comes."""
        writing.set()
        until(lambda: engine.fleet.floor.is_claimed)

    with in_flight(engine), when_writing(engine, wait_for_weights):
        wave = beside(lambda: engine.generate(long_wave()), "wave")
        assert writing.wait(60)
        engine.begin(first + 1)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ReceiverLost):
            engine.finish(first + 1)
        delivery, serving.folder, serving.version = engine.begin(first + 1), newer, first + 1
        serving.send(delivery, first + 1)
        engine.finish(first + 1)
        engine.serve(first + 1)
        rollouts = wave.result(240)
    assert rollouts.strings(ERROR) == [""] * COUNT
    versions, told = rollouts.ragged(TOKEN_VERSIONS).values, rollouts.ragged(SAMPLER_LOGPROBS)
    assert set(versions.tolist()) == {first, first + 1}
    for folder, version in ((vllm_folder, first), (newer, first + 1)):
        gap_T = differences(told.rows(), expected_logprobs(folder, rollouts)[0])
        assert float(gap_T[versions == version].max()) < 1e-4


@pytest.mark.slow
def test_a_group_whose_driver_is_gone_ends_and_leaves_nothing_in_memory(vllm_folder, tmp_path):
    from tests.rollout.serving import Serving

    serving = Serving(vllm_folder, tmp_path)
    serving.publish(vllm_folder)
    fleet = serving.engine.fleet
    key, group = fleet.delivery.key, fleet.berths[0].group
    group.wire.close()
    ends = time.monotonic() + 60
    while group.process.poll() is None and time.monotonic() < ends:
        time.sleep(0.1)
    assert group.process.poll() is not None
    assert not list(memory_folder().glob(f"{key}*"))


def test_a_group_keeps_its_log_short_as_long_as_it_lives(tmp_path, monkeypatch):
    from megatron_rl.rollout.vllm_process import Line, Post

    monkeypatch.setattr(logs, "MOST_BYTES", 1000)
    monkeypatch.setattr(logs, "TAIL_BYTES", 100)
    log, idle = tmp_path / "vllm_0.log", SimpleNamespace(is_busy=False, sleep=lambda: None)
    log.write_bytes(b"something of no interest\n" * 100_000 + b"it ends so\n")
    driver, group = socket.socketpair()
    with driver, group:
        driver.sendall(b'{"do": "sleep"}\n')
        driver.shutdown(socket.SHUT_WR)
        Post(idle, Line(group), log).serve()
    assert log.read_bytes().endswith(b"\nit ends so\n")
    assert log.stat().st_size < logs.HEAD_BYTES + 1000
