"""The data dictionary: every column a batch may hold, with its type and meaning.

A row column holds one value a rollout. A token column is ragged and holds one value a response token, stored at
response length: `tokens[t]` is what the policy wrote, `sampler_logprobs[t]` the log-probability of exactly that token.

    prompt_id  group  tokens        sampler_logprobs     reward  advantage
    "arith-17"     0  [5, 9, 2]     [-.1, -.3, -.2]         1.0  [.5, .5, .5]
    "arith-17"     0  [5, 2]        [-.1, -1.7]             0.0  [-.5, -.5]
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

STRING, INT, FLOAT, FLAG = pa.string(), pa.int64(), pa.float64(), pa.uint8()
TOKEN_IDS, TOKEN_FLOATS, TOKEN_FLAGS = pa.large_list(pa.int32()), pa.large_list(pa.float32()), pa.large_list(pa.uint8())


@dataclass(frozen=True, kw_only=True)
class Column:
    """Name, Arrow type and meaning. A column with a default reads as that default where no stage has written it."""

    name: str
    type: pa.DataType
    meaning: str
    default: float | None = None
    is_per_token: bool = False
    """Whether each of its lists has one value for every response token, as the batch then makes sure."""

    @property
    def is_ragged(self) -> bool:
        return bool(pa.types.is_large_list(self.type))


_DICTIONARY: list[Column] = []


def _declare(
    name: str, type: pa.DataType, meaning: str, default: float | None = None, *, is_per_token: bool = False
) -> Column:
    column = Column(name=name, type=type, meaning=meaning, default=default, is_per_token=is_per_token)
    _DICTIONARY.append(column)
    return column


def _per_token(name: str, type: pa.DataType, meaning: str) -> Column:
    return _declare(name, type, meaning, is_per_token=True)


# The prompt, as the sampler draws it.
PROMPT_ID = _declare("prompt_id", STRING, "identity of the prompt, stable across epochs and runs")
GROUP = _declare("group", INT, "identity of one draw of a prompt; its rollouts share it")
SLOT = _declare("slot", INT, "which rollout of its group this is, from 0")
SOURCE = _declare("source", STRING, "data set the prompt comes from")
ANSWER = _declare("answer", STRING, "reference answer a reward compares with")
EXTRA = _declare("extra", STRING, "further facts of the prompt as a JSON object, for rewards")
PROMPT_TEXT = _declare("prompt_text", STRING, "the prompt after the chat template")
PROMPT_TOKENS = _declare("prompt_tokens", TOKEN_IDS, "the prompt's token ids; the only token column of prompt length")
REFERENCE_REWARDS = _declare(
    "reference_rewards", TOKEN_FLOATS, "rewards of the reference policy's rollouts, from a value run"
)
EPOCH = _declare("epoch", INT, "pass over the prompts in which this one was drawn")
PHASE = _declare("phase", STRING, "why it was asked for: 'train', 'screen', 'continue', 'greedy' or 'evaluate'")
DRAW_ODDS = _declare("draw_odds", FLOAT, "how much likelier than under uniform sampling this prompt was drawn")

# The request, as the engine receives it.
SEED = _declare("seed", INT, "seed of this rollout's sampling noise")
PREFIX = _declare("prefix", TOKEN_IDS, "response tokens given to the engine, which continues after them")
PREFIX_LOGPROBS = _declare("prefix_logprobs", TOKEN_FLOATS, "log-probabilities that came with the prefix")
PREFIX_FINISH = _declare("prefix_finish", STRING, "finish reason where the prefix is the whole response, else empty")
DRAFT_WEIGHTS = _declare(
    "draft_weights", TOKEN_FLOATS, "for each reused token, the weight that undoes its having been accepted leniently"
)
DRAFT_LAW_TOKENS = _declare(
    "draft_law_tokens",
    TOKEN_IDS,
    "of a draft, or of what is kept of one: the likeliest tokens of the law each token was drawn from",
)
DRAFT_LAW_LOGPROBS = _declare("draft_law_logprobs", TOKEN_FLOATS, "their log-probabilities")
BUDGET = _declare("budget", INT, "most response tokens this rollout may have, its prefix included")

# The rollout, as the engine returns it.
TOKENS = _declare("tokens", TOKEN_IDS, "the response, prefix first, end-of-sequence token included")
SAMPLER_LOGPROBS = _per_token(
    "sampler_logprobs", TOKEN_FLOATS, "log-probability under the law each token was drawn from"
)
LOSS_MASK = _per_token("loss_mask", TOKEN_FLAGS, "1 where the token takes part in the loss")
TOKEN_VERSIONS = _per_token("token_versions", TOKEN_IDS, "version of the policy that wrote each token")
REUSED = _declare("reused", INT, "leading response tokens that came from a draft instead of the engine", default=0)
FINISH = _declare("finish", STRING, "'stop' (end token or stop string), 'length' (budget spent) or 'abort'")
STATUS = _declare("status", STRING, "'ok' or 'failed'; a failed rollout has no tokens and its `error` says why")
ERROR = _declare("error", STRING, "why the rollout failed, empty otherwise")
VERSION = _declare("version", INT, "version of the policy that finished the rollout")
RESPONSE_TEXT = _declare("response_text", STRING, "the response, decoded")

# The verdict, as the reward gives it.
REWARD = _declare("reward", FLOAT, "score of the rollout, shaping included")
CORRECT = _declare("correct", FLAG, "1 if the answer is right; selection uses this, never the shaped reward")
VERDICT = _declare("verdict", STRING, "'right', 'wrong', 'unparsable', 'timeout' or 'crashed'")
EXTRACTED = _declare("extracted", STRING, "the answer the reward found in the response")

KEPT = _declare(
    "kept", FLAG, "0 if a filter drops the rollout's group: seen by the sampler, never trained on", default=1
)

# What the learn chain derives.
OLD_LOGPROBS = _per_token(
    "old_logprobs", TOKEN_FLOATS, "actor log-probabilities before the first optimizer step of the update"
)
REFERENCE_LOGPROBS = _per_token(
    "reference_logprobs", TOKEN_FLOATS, "log-probabilities under the frozen reference policy"
)
VALUES = _per_token("values", TOKEN_FLOATS, "the critic's value before each response token")
RETURNS = _per_token("returns", TOKEN_FLOATS, "what the critic regresses on")
OPTIMAL_VALUE = _declare("optimal_value", FLOAT, "soft maximum of the reward under the reference policy (A*-PO)")
BASELINE = _declare("baseline", FLOAT, "what is subtracted from the reward")
SPREAD = _declare("spread", FLOAT, "what the centred reward is divided by", default=1.0)
ADVANTAGE = _per_token(
    "advantage", TOKEN_FLOATS, "weight of each token's log-probability; constant over an outcome-scored response"
)
LOSS_WEIGHT = _declare(
    "loss_weight", FLOAT, "factor on every token loss of the rollout (importance of its prompt)", default=1.0
)

DICTIONARY: dict[str, Column] = {column.name: column for column in _DICTIONARY}
