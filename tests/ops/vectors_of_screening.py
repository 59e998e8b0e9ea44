"""Golden operations of screening: its odds, its bias, its cost and its order of events."""

from __future__ import annotations

from typing import Any

from megatron_rl.ops import screening, screening_queue
from tests.ops.json_inputs import Inputs, flatten, given, group_ids, tensor

Answer = dict[str, Any]


def speed_classify(inputs: Inputs) -> Answer:
    groups, low, high = inputs["correct"], given(inputs, "low", 0.0), given(inputs, "high", 1.0)
    screened = screening.classify(flatten(groups), group_ids(groups), low, high)
    return {"pass_rate": screened.pass_rate_G.tolist(), "accept": screened.accept_G.tolist()}


def speed_accept_prob(inputs: Inputs) -> Answer:
    low, high = given(inputs, "low", 0.0), given(inputs, "high", 1.0)
    return {"accept_prob": screening.accept_probability(tensor(inputs["p"]), inputs["n_init"], low, high).tolist()}


def speed_selection(inputs: Inputs) -> Answer:
    chosen = screening.selection(tensor(inputs["p"]), inputs["n_init"], inputs["n_cont"])
    names = ("accept_prob", "screen_mean", "train_mean", "grad_scale_all")
    return {name: value.tolist() for name, value in zip(names, chosen, strict=True)}


def speed_cost(inputs: Inputs) -> Answer:
    price = screening.cost(tensor(inputs["pass_rates"]), inputs["n_init"], inputs["n_cont"])
    names = ("accept_rate", "speed_rollouts_per_trained_prompt", "dynamic_sampling_rollouts_per_trained_prompt")
    return {name: value.item() for name, value in zip(names, price, strict=True)}


def speed_snr(inputs: Inputs) -> Answer:
    bound, factor = screening.signal(tensor(inputs["p"]), inputs["n"])
    return {"snr_bound": bound.tolist(), "improvement_factor": factor.tolist()}


def speed_trace(inputs: Inputs) -> Answer:
    prompts, n_init, n_cont = inputs["prompts"], inputs["n_init"], inputs["n_cont"]
    screens = [prompt["screen"][:n_init] for prompt in prompts]
    accept_G = screening.classify(
        flatten(screens), group_ids(screens), given(inputs, "low", 0.0), given(inputs, "high", 1.0)
    ).accept_G
    accepted = set(accept_G.nonzero().flatten().tolist())

    def ids(numbers: tuple[int, ...]) -> list[Any]:
        return [prompts[at]["id"] for at in numbers]

    queue, events, rollouts, trained = screening_queue.Queue(), [], 0, 0
    while trained < given(inputs, "steps", len(prompts)):
        if screening_queue.can_train(queue, inputs["train_batch"]):
            queue, batch = screening_queue.next_batch(queue, inputs["train_batch"])
            groups = [screens[at] + prompts[at]["cont"][:n_cont] for at in batch]
            events.append({"kind": "train", "prompts": ids(batch), "groups": groups})
            trained += 1
            continue
        queue, wave = screening_queue.next_wave(queue, inputs["gen_batch"], len(prompts))
        if wave.is_empty:
            break
        asked = wave.rollouts(n_init, n_cont)
        rollouts += asked
        events.append({"kind": "generate", "screen": ids(wave.screen), "continue": ids(wave.resume), "rollouts": asked})
        queue = screening_queue.settle(queue, wave, accepted)
    return {
        "events": events,
        "rejected": ids(queue.rejected),
        "pending_at_end": ids(queue.pending),
        "ready_at_end": ids(queue.ready),
        "total_rollouts": rollouts,
        "prompts_consumed": queue.position,
    }


OPERATIONS = (speed_classify, speed_accept_prob, speed_selection, speed_cost, speed_snr, speed_trace)
