"""Order, conservation and resumption of screening, on random streams."""

import random
from dataclasses import asdict

import pytest

from megatron_rl.ops.screening_queue import Queue, can_train, next_batch, next_wave, settle


def step(queue, accepted, sizes, stream):
    """The queue after one move, and what happened; nothing once all is spent."""
    train, fresh = sizes
    if can_train(queue, train):
        queue, batch = next_batch(queue, train)
        return queue, ("train", batch)
    queue, wave = next_wave(queue, fresh, stream)
    return (queue, None) if wave.is_empty else (settle(queue, wave, accepted), ("generate", wave.screen, wave.resume))


def run(queue, accepted, sizes, stream, moves=10_000):
    events = []
    for _ in range(moves):
        queue, event = step(queue, accepted, sizes, stream)
        if event is None:
            break
        events.append(event)
    return queue, events


def world(seed):
    rng = random.Random(seed)
    stream = rng.randint(0, 60)
    accepted = {prompt for prompt in range(stream) if rng.random() < 0.5}
    return accepted, (rng.randint(1, 5), rng.randint(1, 9)), stream


@pytest.mark.parametrize("seed", range(30))
def test_prompts_train_once_in_the_order_of_acceptance(seed):
    accepted, sizes, stream = world(seed)
    queue, events = run(Queue(), accepted, sizes, stream)
    trained = [prompt for event in events if event[0] == "train" for prompt in event[1]]
    assert trained + list(queue.ready) == sorted(accepted)


@pytest.mark.parametrize("seed", range(30))
def test_no_prompt_is_lost_at_any_moment(seed):
    accepted, sizes, stream = world(seed)
    queue, trained = Queue(), []
    for _ in range(200):
        queue, event = step(queue, accepted, sizes, stream)
        trained += event[1] if event and event[0] == "train" else ()
        assert sorted([*trained, *queue.pending, *queue.ready, *queue.rejected]) == list(range(queue.position))


@pytest.mark.parametrize("seed", range(30))
def test_a_trained_prompt_was_screened_and_continued_before(seed):
    accepted, sizes, stream = world(seed)
    screened, continued = set(), set()
    for event in run(Queue(), accepted, sizes, stream)[1]:
        if event[0] == "train":
            assert set(event[1]) <= continued <= screened
        else:
            assert set(event[2]) <= screened
            screened |= set(event[1])
            continued |= set(event[2])


@pytest.mark.parametrize("seed", range(10))
def test_stopping_anywhere_and_going_on_is_not_having_stopped(seed):
    accepted, sizes, stream = world(seed)
    end, whole = run(Queue(), accepted, sizes, stream)
    for moves in range(len(whole)):
        middle, before = run(Queue(), accepted, sizes, stream, moves)
        resumed, after = run(Queue(**asdict(middle)), accepted, sizes, stream)
        assert (resumed, before + after) == (end, whole)


def test_a_wave_counts_its_rollouts():
    _, wave = next_wave(Queue(position=6, pending=(3, 4)), 3, 8)
    assert (wave.screen, wave.resume) == ((6, 7), (3, 4))
    assert wave.rollouts(2, 4) == 12
