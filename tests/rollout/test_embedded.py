import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from transformers import AutoModelForCausalLM

from megatron_rl.actor.parallel import Parallel
from megatron_rl.batch.columns import (
    ERROR,
    FINISH,
    LOSS_MASK,
    PREFIX_LOGPROBS,
    PROMPT_TOKENS,
    RESPONSE_TEXT,
    SAMPLER_LOGPROBS,
    STATUS,
    TOKENS,
    VERSION,
)
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.local import execute_local, load_rank
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.placement import together
from megatron_rl.reshard.plan import plan
from tests.fakes.tiny_models import tiny_folder
from tests.rollout.opening import asked, open_embedded, random_prompts
from tests.rollout.reference_law import laws_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"), "qwen3", tie_word_embeddings=True, num_attention_heads=6)


def written(rollouts):
    tokens, logprobs = rollouts[TOKENS].rows(), rollouts[SAMPLER_LOGPROBS].rows()
    return [(one.tolist(), law.tolist()) for one, law in zip(tokens, logprobs, strict=True)]


FAMILIES = [
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("llama", {"num_key_value_heads": 1}),
]
FAMILIES.append(("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}))
MIXTURES = [
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": False, "tie_word_embeddings": True}),
    ("qwen3_moe", {"num_experts": 8, "num_experts_per_tok": 3, "mlp_only_layers": [], "decoder_sparse_step": 2}),
    ("qwen3_moe", {"num_experts": 3, "num_experts_per_tok": 1, "norm_topk_prob": False}),
]


@pytest.mark.parametrize(("family", "changes"), FAMILIES + MIXTURES, ids=str)
def test_greedy_tokens_and_log_probabilities_are_those_of_transformers(tmp_path, family, changes):
    folder = tiny_folder(tmp_path, family, **changes)
    engine, model = open_embedded(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompts = random_prompts(20)
    greedy = engine.generate(asked(prompts), Sampling(temperature=0))
    scores = engine.score(greedy)
    for prompt, response, logprob_N in zip(prompts, greedy[TOKENS].rows(), scores.rows(), strict=True):
        whole = torch.tensor([[*prompt, *response.tolist()]])
        logits_NV = model(whole).logits[0, len(prompt) - 1 : -1].float()
        assert logits_NV.argmax(-1).tolist() == response.tolist()
        expected = torch.log_softmax(logits_NV, -1).gather(1, response.long()[:, None]).squeeze(1)
        torch.testing.assert_close(logprob_N, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut", [Parallel(dp=2, ep=2), Parallel(tp=2, ep=2), Parallel(pp=2, dp=2, ep=2)], ids=str)
def test_weights_of_experts_dealt_over_ranks_arrive_as_the_folder_holds_them(tmp_path, cut):
    folder = tiny_folder(tmp_path, "qwen3_moe")
    given, sent = load_file(folder / "model.safetensors"), open_embedded(folder)
    source, target = megatron_layout(sent.blueprint.shape, cut), huggingface_layout(sent.blueprint.shape)
    sources = {
        rank: {tensor.key: torch.zeros(tensor.shape) for tensor in source.tensors(rank)} for rank in range(cut.world)
    }
    for rank, tensors in sources.items():
        load_rank(source, rank, given.__getitem__, tensors)
    for view in sent.parameters().values():
        view.fill_(torch.nan)
    execute_local(plan(source, target, together(source, target)), sources, {0: sent.parameters()})
    prompts = asked(random_prompts(8))
    assert written(sent.generate(prompts)) == written(open_embedded(folder).generate(prompts))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17, 40])
def test_a_rollout_is_the_same_bits_whatever_is_beside_it(folder, count):
    prompts = random_prompts(40)
    everything = written(open_embedded(folder).generate(asked(prompts)))
    few = open_embedded(folder, rows=max(2, count // 3)).generate(asked(prompts[:count]))
    assert written(few) == everything[:count]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(count)).tolist()
    shuffled = open_embedded(folder, rows=16).generate(asked([prompts[row] for row in order], seeds=order))
    assert written(shuffled) == [everything[row] for row in order]


def test_a_response_cut_anywhere_and_resumed_is_the_same_bits(folder):
    prompts = random_prompts(30)
    engine = open_embedded(folder)
    whole = engine.generate(asked(prompts))
    cuts = [row % (len(tokens) + 1) for row, (tokens, _) in enumerate(written(whole))]
    cuts = [min(cut, len(tokens) - 1) for cut, (tokens, _) in zip(cuts, written(whole), strict=True)]
    heads = asked(prompts, prefixes=[tokens[:cut] for cut, (tokens, _) in zip(cuts, written(whole), strict=True)])
    known = [logprobs[:cut] for cut, (_, logprobs) in zip(cuts, written(whole), strict=True)]
    assert written(engine.generate(heads.with_columns({PREFIX_LOGPROBS: known}))) == written(whole)
    assert written(engine.generate(heads))[3][0] == written(whole)[3][0]


@pytest.mark.parametrize(
    ("family", "threads"),
    [
        ("qwen3", 1),
        ("qwen3", 2),
        pytest.param("qwen3", 4, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", 2, marks=pytest.mark.slow),
    ],
)
def test_rollouts_permuted_split_and_resumed_are_the_same_bits_with_any_number_of_threads(tmp_path, family, threads):
    wide = {"hidden_size": 96, "intermediate_size": 500, "num_attention_heads": 3, "num_key_value_heads": 1}
    folder = tiny_folder(tmp_path, family, max_position_embeddings=512, **wide)
    # Threads that wait by spinning make a busy machine crawl; MKL left to itself uses no more threads than cores.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "MKL_DYNAMIC": "FALSE"}
    command = [sys.executable, "-m", "tests.rollout.apart_and_together", str(folder), str(threads)]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == [f"rows that differ with {threads} threads: {{}}"], done.stderr


def test_rollouts_of_one_prompt_share_its_reading_and_differ_by_seed(folder):
    rollouts = open_embedded(folder).generate(asked([[5, 6, 7]] * 8))
    assert len({tuple(tokens) for tokens, _ in written(rollouts)}) == 8


def test_sampler_log_probabilities_are_what_a_score_gives(folder):
    engine = open_embedded(folder, temperature=0.7, top_k=20)
    rollouts = engine.generate(asked(random_prompts(30)))
    torch.testing.assert_close(rollouts[SAMPLER_LOGPROBS].values, engine.score(rollouts).values, atol=1e-5, rtol=0)


LAWS = [
    Sampling(temperature=1.3),
    Sampling(temperature=0.4),
    Sampling(temperature=0.5, top_p=0.6),
    Sampling(temperature=0.5, top_k=12),
    Sampling(temperature=0.5, min_p=0.1),
    Sampling(temperature=0.6, top_p=0.8, top_k=20, min_p=0.05),
]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_tokens_are_drawn_in_the_law_that_transformers_makes_of_it(folder, law):
    """Pearson's test over the first token and over the second after the likeliest first."""
    engine, count = open_embedded(folder, max_tokens=2, rows=1024, end=()), 8_000
    rollouts = engine.generate(asked([[5, 6, 7]] * count), law)
    first_N, second_N = rollouts[TOKENS].values.view(count, 2).T
    top = int(first_N.mode().values)
    for seen_N, context in ((first_N, [5, 6, 7]), (second_N[first_N == top], [5, 6, 7, top])):
        law_V = laws_of(folder, [context], law)[0].exp().double()
        seen_V = torch.bincount(seen_N, minlength=len(law_V))
        possible_V = law_V > 0
        assert int(seen_V[~possible_V].sum()) == 0
        assert 1 < int(possible_V.sum()) < len(law_V) or law.is_whole
        due_V = law_V[possible_V] / law_V[possible_V].sum() * len(seen_N)
        assert stats.chisquare(seen_V[possible_V].numpy(), due_V.numpy()).pvalue > 1e-3


def test_pearsons_test_would_tell_a_law_that_is_a_little_off(folder):
    engine, count = open_embedded(folder, max_tokens=1, rows=1024), 8_000
    rollouts = engine.generate(asked([[5, 6, 7]] * count), Sampling(temperature=0.45))
    law_V = laws_of(folder, [[5, 6, 7]], Sampling(temperature=0.4))[0].exp().double()
    seen_V = torch.bincount(rollouts[TOKENS].values, minlength=len(law_V))[law_V > 0]
    due_V = law_V[law_V > 0] / law_V.sum() * count
    assert stats.chisquare(seen_V.numpy(), due_V.numpy()).pvalue < 1e-6


def test_what_comes_back_says_how_it_ended(folder):
    engine = open_embedded(folder, end=tuple(range(0, 50)), max_tokens=6)
    rollouts = engine.generate(asked(random_prompts(40)))
    for (tokens, _), finish in zip(written(rollouts), rollouts[FINISH], strict=True):
        assert finish == ("stop" if tokens[-1] < 50 else "length")
        assert finish == "stop" or len(tokens) == 6
        assert all(token >= 50 for token in tokens[:-1])
    assert {"stop", "length"} == set(rollouts[FINISH])
    assert rollouts[LOSS_MASK].values.min() == 1
    assert rollouts[VERSION].tolist() == [0] * 40
    assert rollouts[RESPONSE_TEXT][0] == "".join(f"<{token}>" for token in written(rollouts)[0][0])


def test_a_stop_text_that_spans_tokens_ends_the_response_and_is_kept(folder):
    plain = open_embedded(folder, end=()).generate(asked(random_prompts(10)))
    tokens = written(plain)[0][0]
    text = f"<{tokens[3]}><{tokens[4]}>"
    stopped = open_embedded(folder, end=(), stop=(text,)).generate(asked(random_prompts(10)))
    assert written(stopped)[0][0] == tokens[:5]
    assert stopped[FINISH][0] == "stop"
    assert stopped[RESPONSE_TEXT][0].endswith(text)


def test_a_response_cut_inside_a_stop_text_goes_on_and_ends_where_the_text_is_whole(folder):
    tokens = written(open_embedded(folder, end=()).generate(asked(random_prompts(10))))[0][0]
    engine = open_embedded(folder, end=(), stop=(f"<{tokens[3]}><{tokens[4]}>",))
    whole = engine.generate(asked(random_prompts(10)[:1]))
    resumed = engine.generate(asked(random_prompts(10)[:1], prefixes=[tokens[:4]]))
    assert written(resumed)[0][0] == written(whole)[0][0] == tokens[:5]
    assert resumed[FINISH] == ["stop"]
    ended = engine.generate(asked(random_prompts(10)[:1], prefixes=[tokens[:5]]))
    assert written(ended)[0][0] == tokens[:5]
    assert ended[FINISH] == ["stop"]


def test_laws_hold_the_log_probability_of_every_token_and_begin_with_the_likeliest(folder):
    engine = open_embedded(folder, top_k=50)
    rollouts = engine.generate(asked(random_prompts(4)))
    target_T = rollouts[TOKENS].values.long()
    whole, few = engine.laws(rollouts, 0), engine.laws(rollouts, 3)
    token_TV, logprob_TV = whole.tokens.values.view(len(target_T), -1), whole.logprobs.values.view(len(target_T), -1)
    found_T = logprob_TV[(token_TV == target_T[:, None])]
    torch.testing.assert_close(found_T, engine.score(rollouts).values, atol=1e-6, rtol=0)
    torch.testing.assert_close(logprob_TV.exp().sum(1), torch.ones(len(target_T)))
    assert few.logprobs.values.view(-1, 3).tolist() == logprob_TV[:, :3].tolist()
    assert few.tokens.length_B.tolist() == [3 * length for length in rollouts[TOKENS].length_B.tolist()]


def test_requests_that_cannot_be_written_come_back_failed_with_the_reason(folder):
    rollouts = open_embedded(folder).generate(asked([[5] * 128, [5, 6], []]))
    assert rollouts[STATUS] == ["failed", "ok", "failed"]
    assert rollouts[ERROR][0] == "the prompt has 128 tokens, and the model's context is 128"
    assert rollouts[TOKENS].length_B.tolist()[0] == 0


def test_budgets_and_the_context_bound_the_response(folder):
    engine = open_embedded(folder, end=())
    rollouts = engine.generate(asked([[5, 6], [5] * 120, [5, 6]], prefixes=[[], [], [9, 9]], budgets=[3, 24, 2]))
    assert rollouts[TOKENS].length_B.tolist() == [3, 8, 2]
    assert rollouts[FINISH] == ["length"] * 3
    assert rollouts[TOKENS].row(2).tolist() == [9, 9]


def test_weights_that_are_not_finite_fail_the_request_by_name(folder):
    engine = open_embedded(folder)
    next(iter(engine.parameters().values())).fill_(math.nan)
    for temperature in (0.0, 1.0):
        rollouts = engine.generate(asked([[5, 6]]), Sampling(temperature=temperature))
        assert rollouts[STATUS] == ["failed"]
        assert "response token 0 is nan" in rollouts[ERROR][0]


def test_a_wave_past_its_deadline_comes_back_as_far_as_it_got(folder):
    engine = open_embedded(folder, end=(), deadline_s=1e-9, max_tokens=20)
    rollouts = engine.generate(asked([[5, 6]] * 3))
    assert set(rollouts[FINISH]) == {"abort"}
    assert rollouts[STATUS] == ["ok"] * 3
    assert rollouts[TOKENS].length_B.max() < 20


def test_progress_is_told(folder):
    engine, told = open_embedded(folder), []
    engine.progress = lambda done, total, tokens: told.append((done, total, tokens))
    rollouts = engine.generate(asked(random_prompts(12)))
    assert told[-1] == (12, 12, len(rollouts[TOKENS].values))
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_an_empty_batch_comes_back_empty(folder):
    nothing = open_embedded(folder).generate(asked([[5]]).where(torch.tensor([False])))
    assert len(nothing) == 0
    assert PROMPT_TOKENS in nothing
