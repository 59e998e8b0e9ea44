from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ANSWER, CORRECT, RESPONSE_TEXT, REWARD, STATUS
from megatron_rl.ports import Context
from megatron_rl.stages.judge import Judge
from tests.fakes.tabular import FirstAnswerIsRight


def test_the_judges_verdict_is_written_and_summed_up():
    context = Context(step=0, version=0, seed=0, machines={"judge": FirstAnswerIsRight()})
    judged, _ = Judge()(
        Batch.of({RESPONSE_TEXT: ["0", "1"], ANSWER: ["0", "0"], STATUS: ["ok", "failed"]}), None, context
    )
    assert judged[REWARD].tolist() == [1.0, 0.0]
    assert judged[CORRECT].tolist() == [1, 0]
    assert judged.metrics == {"reward/mean": 0.5, "reward/correct": 0.5, "rollout/scored": 1.0}
