"""Random golden cases of every operation with a slow reference, their inputs within the contract but rarely tidy."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

from tests.ops import reference_groups as groups_of
from tests.ops import reference_tokens as tokens_of

Case = dict[str, Any]
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "token-sum")


def cases(seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    for build in (*_GROUP_BUILDERS, *_TOKEN_BUILDERS):
        yield {"name": f"random_{seed}", "atol": 1e-9, "rtol": 1e-9, **build(rng)}


def _case(op: str, inputs: Case, expected: Case) -> Case:
    return {"op": op, "inputs": inputs, "expected": expected}


def some(rng: random.Random, inputs: Case, **defaults: Any) -> Case:
    """The inputs with each optional field present or missing, by chance."""
    return inputs | {key: value for key, value in defaults.items() if rng.random() < 0.5}


def reward(rng: random.Random, kind: str) -> float:
    options = {
        "binary": lambda: rng.randint(0, 1),
        "real": lambda: rng.gauss(0, 1),
        "offset": lambda: 1e6 + rng.randint(0, 3),
        "constant": lambda: 0.1,
    }
    return options[kind]()


def groups(rng: random.Random, least: int = 1) -> list[list[float]]:
    kind = rng.choice(("binary", "binary", "real", "constant"))
    return [[reward(rng, kind) for _ in range(rng.randint(1, 5))] for _ in range(rng.randint(least, 6))]


def matrix(rng: random.Random, lengths: list[int], low: float = -3.0, high: float = 0.0) -> list[list[float]]:
    return [[rng.uniform(low, high) for _ in range(length)] for length in lengths]


def shape(rng: random.Random) -> list[int]:
    return [rng.randint(1, 6) for _ in range(rng.randint(1, 5))]


def mask(rng: random.Random, lengths: list[int]) -> list[list[int]]:
    """Holes, empty rows and full rows."""
    keep = rng.choice((0.0, 0.5, 0.8, 1.0))
    return [[int(rng.random() < keep) for _ in range(length)] for length in lengths]


def prefix_mask(rng: random.Random, lengths: list[int]) -> list[list[int]]:
    cuts = [rng.randint(0, length) for length in lengths]
    return [[int(t < cut) for t in range(length)] for cut, length in zip(cuts, lengths, strict=True)]


def law(rng: random.Random, size: int) -> list[float]:
    weights = [rng.random() + 0.01 for _ in range(size)]
    return [weight / sum(weights) for weight in weights]


def js_baseline(rng: random.Random) -> Case:
    inputs, variant = {"groups": groups(rng)}, rng.choice(("paper", "official_code"))
    return _case(
        "js_baseline",
        inputs | {"variant": variant, "eps": 1e-6},
        groups_of.js_baseline(inputs["groups"], variant, 1e-6),
    )


def js_optimal_lambda(rng: random.Random) -> Case:
    sigma2, s2, n, m = rng.random(), rng.random(), rng.randint(2, 40), rng.randint(2, 20)
    inputs = {"mean_sigma2": sigma2, "s2": s2, "n": n, "m": m}
    return _case("js_optimal_lambda", inputs, groups_of.optimal_lambda(sigma2, s2, n, m))


def rloo(rng: random.Random) -> Case:
    inputs = {"groups": groups(rng)}
    return _case("rloo", inputs, {"advantage": groups_of.rloo(inputs["groups"])})


def bloo(rng: random.Random) -> Case:
    inputs = {"groups": groups(rng)}
    return _case("bloo", inputs, {"advantage": groups_of.bloo(inputs["groups"])})


def grpo(rng: random.Random) -> Case:
    inputs, ddof, scale = {"groups": groups(rng)}, rng.randint(0, 1), rng.random() < 0.7
    expected = {"advantage": groups_of.grpo(inputs["groups"], ddof, 1e-6, scale)}
    return _case("grpo", some(rng, inputs | {"ddof": ddof, "scale": scale}, eps=1e-6), expected)


def ers(rng: random.Random) -> Case:
    visits, alpha = groups(rng), rng.choice((0, 0.1, 0.5, 0.99, 1, "1/n"))
    expected = groups_of.ers(visits, alpha, 1e-4, 1, True)
    return _case("ers", some(rng, {"visits": visits, "alpha": alpha}, eps=1e-4, ddof=1, scale=True), expected)


def pps_weights(rng: random.Random) -> Case:
    priorities = [rng.choice((1e-6, 1, rng.random() * 5)) for _ in range(rng.randint(1, 8))]
    exponent, beta = rng.choice((0, 0.6, 1)), rng.choice((0, 0.4, 1.0))
    batch = [rng.randrange(len(priorities)) for _ in range(rng.randint(1, 4))]
    inputs = {"priorities": priorities, "exponent": exponent, "beta": beta, "batch": batch}
    return _case("pps_weights", inputs, groups_of.pps_weights(priorities, exponent, beta, batch))


def vstar(rng: random.Random) -> Case:
    rewards, beta = [rng.uniform(-2, 2) for _ in range(rng.randint(1, 9))], rng.choice((0, 1e-4, 0.5, 3, math.inf))
    shown = "inf" if beta == math.inf else beta
    return _case("vstar", {"rewards": rewards, "beta1": shown}, {"vstar": groups_of.vstar(rewards, beta)})


def speed_accept_prob(rng: random.Random) -> Case:
    p, n, low, high = rng.choice((0, 1, rng.random())), rng.randint(2, 9), rng.choice((0, 0.25)), rng.choice((0.75, 1))
    inputs = {"p": p, "n_init": n, "low": low, "high": high}
    return _case("speed_accept_prob", inputs, {"accept_prob": groups_of.accept_probability(p, n, low, high)})


def speed_selection(rng: random.Random) -> Case:
    p, n_init, n_cont = rng.uniform(0.01, 0.99), rng.randint(2, 4), rng.randint(1, 5)
    return _case(
        "speed_selection", {"p": p, "n_init": n_init, "n_cont": n_cont}, groups_of.selection(p, n_init, n_cont)
    )


def speed_trace(rng: random.Random) -> Case:
    n_init, n_cont = rng.randint(2, 3), rng.randint(1, 4)
    prompts = [
        {"id": name, "screen": [rng.randint(0, 1) for _ in range(n_init)], "cont": [rng.randint(0, 1)] * n_cont}
        for name in range(rng.randint(1, 25))
    ]
    inputs = {"n_init": n_init, "n_cont": n_cont, "train_batch": rng.randint(1, 4), "gen_batch": rng.randint(1, 6)}
    inputs |= {"steps": rng.randint(0, 5), "prompts": prompts}
    return _case("speed_trace", inputs, groups_of.speed_trace(inputs))


def ppo_loss(rng: random.Random) -> Case:
    lengths = shape(rng)
    inputs: Case = {
        "logp": matrix(rng, lengths),
        "old_logp": matrix(rng, lengths),
        "adv": [rng.choice((-1, 0, 1, rng.gauss(0, 2))) for _ in lengths],
        "mask": mask(rng, lengths),
        "clip_low": 0.2,
        "clip_high": rng.choice((0.2, 0.28)),
        "dual_clip": rng.choice((None, 3, 1.5)),
        "agg": rng.choice(AGGREGATIONS),
        "l_max": 7,
    }
    inputs = some(rng, inputs, weights=matrix(rng, lengths, 0.0, 2.0))
    return _case("ppo_loss", inputs, tokens_of.ppo_loss(inputs))


def aggregate(rng: random.Random) -> Case:
    lengths, mode = shape(rng), rng.choice(AGGREGATIONS)
    inputs = {"mat": matrix(rng, lengths), "mask": mask(rng, lengths), "mode": mode, "l_max": 9}
    return _case("aggregate", inputs, {"value": tokens_of.aggregate(inputs["mat"], inputs["mask"], mode, 9)})


def kl_estimators(rng: random.Random) -> Case:
    lengths, width = shape(rng), rng.choice((1.0, 40.0))
    inputs = {"logp": matrix(rng, lengths, -width), "ref_logp": matrix(rng, lengths, -width)}
    pairs = zip(inputs["logp"], inputs["ref_logp"], strict=True)
    table = [[tokens_of.kl(a, b) for a, b in zip(row, other, strict=True)] for row, other in pairs]
    names = ("k1", "k2", "k3", "abs")
    return _case(
        "kl_estimators", inputs, {name: [[kinds[i] for kinds in row] for row in table] for i, name in enumerate(names)}
    )


def tis_weights(rng: random.Random) -> Case:
    lengths, level = shape(rng), rng.choice(("token", "sequence", "icepop"))
    inputs = {
        "logp_train": matrix(rng, lengths),
        "logp_rollout": matrix(rng, lengths),
        "mask": mask(rng, lengths),
        "level": level,
        "cap": rng.choice((2, 5.0)),
        "floor": 0.5,
    }
    inputs = some(rng, inputs, reused=mask(rng, lengths))
    return _case("tis_weights", inputs, {"weights": tokens_of.tis(inputs)})


def gae(rng: random.Random) -> Case:
    lengths = shape(rng)
    inputs = {
        "rewards": matrix(rng, lengths),
        "values": matrix(rng, lengths),
        "mask": prefix_mask(rng, lengths),
        "gamma": rng.choice((1, 0.9)),
        "lam": rng.choice((0, 0.5, 1.0)),
    }
    return _case("gae", inputs, tokens_of.gae(inputs))


def reinforce_pp(rng: random.Random) -> Case:
    lengths, gamma = shape(rng), rng.choice((1, 0.5))
    live, rewards = prefix_mask(rng, lengths), [rng.gauss(0, 1) for _ in lengths]
    inputs = {"rewards": rewards, "mask": live, "gamma": gamma}
    return _case("reinforce_pp", inputs, tokens_of.reinforce_pp(rewards, live, gamma))


def value_loss(rng: random.Random) -> Case:
    lengths = shape(rng)
    inputs: Case = {name: matrix(rng, lengths, -1.0, 1.0) for name in ("values", "old_values", "returns")}
    inputs |= {"mask": mask(rng, lengths), "clip": rng.choice((0.2, 0.5))}
    return _case("value_loss", inputs, {"loss": tokens_of.value_loss(inputs)})


def apo_loss(rng: random.Random) -> Case:
    lengths = shape(rng)
    inputs = {
        "logp": matrix(rng, lengths),
        "ref_logp": matrix(rng, lengths),
        "mask": mask(rng, lengths),
        "rewards": [rng.randint(0, 1) for _ in lengths],
        "v": [rng.random() for _ in lengths],
        "beta2": rng.choice((1e-3, 0.5)),
    }
    return _case("apo_loss", inputs, tokens_of.apo_loss(inputs))


def spec_verify(rng: random.Random) -> Case:
    lengths = shape(rng)
    new = [[x if rng.random() < 0.9 else "-inf" for x in row] for row in matrix(rng, lengths)]
    lenience = rng.choice((0, 0.5, -0.5, 2.0, "inf"))
    inputs = {"old_logp": matrix(rng, lengths), "new_logp": new, "u": matrix(rng, lengths, 0.0, 1.0)}
    inputs |= {"log_lenience": lenience, "max_response": rng.randint(1, 7)}
    inputs = some(rng, inputs, finished=[rng.random() < 0.5 for _ in lengths])
    plain = inputs | {"new_logp": [[float(x) for x in row] for row in new], "log_lenience": float(lenience)}
    return _case("spec_verify", inputs, tokens_of.spec_verify(plain))


def spec_output_dist(rng: random.Random) -> Case:
    size, lenience = rng.randint(1, 6), rng.choice((0.4, 1, 1.5, "inf"))
    new, old = law(rng, size), law(rng, size)
    mass, output = tokens_of.output_law(new, old, float(lenience))
    distance = sum(abs(a - b) for a, b in zip(output, new, strict=True)) / 2
    expected = {"accept_prob": mass, "output": output, "total_variation_to_new": distance}
    return _case("spec_output_dist", {"p_new": new, "q_old": old, "lenience": lenience}, expected)


def spec_sequence_dist(rng: random.Random) -> Case:
    size = rng.randint(1, 4)
    inputs: Case = {"p_first": law(rng, size), "q_first": law(rng, size), "lenience": rng.choice((0.5, 1, 2.0))}
    inputs |= {key: [law(rng, size) for _ in range(size)] for key in ("p_second", "q_second")}
    return _case("spec_sequence_dist", inputs, tokens_of.sequence_law(inputs))


_GROUP_BUILDERS = (
    *(js_baseline, js_optimal_lambda, rloo, bloo, grpo, ers, pps_weights, vstar),
    *(speed_accept_prob, speed_selection, speed_trace),
)
_TOKEN_BUILDERS = (
    *(ppo_loss, aggregate, kl_estimators, tis_weights, gae, reinforce_pp, value_loss, apo_loss),
    *(spec_verify, spec_output_dist, spec_sequence_dist),
)
