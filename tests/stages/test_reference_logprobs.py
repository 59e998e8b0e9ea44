from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PROMPT_TOKENS, REFERENCE_LOGPROBS, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import Context
from megatron_rl.stages.reference_logprobs import ReferenceLogprobs
from tests.fakes.tabular import TabularActor


class AnswersByPolicy(TabularActor):
    def score(self, batch, policy="current"):
        tokens = batch.ragged(TOKENS)
        return Ragged(tokens.values * 0.0 - (2.0 if policy == "reference" else 1.0), tokens.offsets)


def test_the_reference_is_asked_not_the_policy_in_training():
    context = Context(step=0, version=0, seed=0, machines={"actor": AnswersByPolicy(2)})
    scored, _ = ReferenceLogprobs()(Batch.of({PROMPT_TOKENS: [[0], [1]], TOKENS: [[1, 2], [0]]}), None, context)
    assert scored[REFERENCE_LOGPROBS].values.tolist() == [-2.0, -2.0, -2.0]
    assert scored[REFERENCE_LOGPROBS].offsets.tolist() == [0, 2, 3]
