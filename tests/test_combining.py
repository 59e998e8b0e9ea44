import pyarrow as pa

from megatron_rl.batch.columns import (
    ADVANTAGE,
    BASELINE,
    KEPT,
    OPTIMAL_VALUE,
    PREFIX,
    REFERENCE_REWARDS,
    REWARD,
    SAMPLER_LOGPROBS,
    SPREAD,
    TOKENS,
    Column,
)
from megatron_rl.combining import Chosen, check_ahead, check_combination, check_in_flight, check_laws, check_sleep
from megatron_rl.objectives.rebel import Rebel
from megatron_rl.samplers.uniform import Uniform
from megatron_rl.stages.drafts.reuse import Reuse


class Idea:
    def __init__(self, reads=(), writes=()):
        self.reads, self.writes = reads, writes


class Jealous(Idea):
    conflicts = {"other": "there is room for one"}  # noqa: RUF012  # as ideas declare it


class Lonely(Idea):
    requires = {"friend": "it cannot be alone"}  # noqa: RUF012


class Asks(Idea):
    uses = ("engine",)


class Peeks(Idea):
    may_read = (BASELINE,)


BASELINES = Idea(reads=(REWARD,), writes=(BASELINE,))
ADVANTAGES = Idea(reads=(REWARD, BASELINE, SPREAD), writes=(ADVANTAGE,))
UNIFORM = ("uniform", Idea())
CLIPPED = ("clipped", Idea(reads=(ADVANTAGE,)))
CORRECTED = ("clipped", Idea(reads=(ADVANTAGE, SAMPLER_LOGPROBS)))


def check(learn, collect=(), objective=CLIPPED, sampler=UNIFORM):
    return check_combination(Chosen(sampler, collect, learn, objective))


def test_a_baseline_its_advantage_and_a_loss_that_reads_it_fit():
    assert check([("one", BASELINES), ("advantage", ADVANTAGES)]) == []


def test_two_stages_that_decide_the_same_are_refused_whichever_chain_they_stand_in():
    (problem,) = check([("one", BASELINES), ("two", BASELINES), ("advantage", ADVANTAGES)])
    assert "'one' and 'two' both write 'baseline'" in problem
    assert "keep one" in problem
    assert len(check([("two", BASELINES), ("advantage", ADVANTAGES)], collect=[("one", BASELINES)])) == 1


def test_a_stage_that_reads_what_it_writes_goes_on_from_there():
    shrinks = Idea(reads=(BASELINE,), writes=(BASELINE,))
    assert check([("one", BASELINES), ("two", shrinks), ("advantage", ADVANTAGES)]) == []
    assert check([("one", BASELINES), ("two", Peeks(writes=(BASELINE,))), ("advantage", ADVANTAGES)]) == []


def test_what_nothing_reads_is_refused_unless_it_does_something_else_too():
    own = Column(name="own", type=pa.int64(), meaning="for the record")
    (problem,) = check([("one", BASELINES)], objective=("regression", Idea(reads=(REWARD,))))
    assert "'one' writes 'baseline', which objective 'regression'" in problem
    assert check([("one", Asks(writes=(BASELINE,)))]) == []
    assert check([("one", Idea(writes=(BASELINE, own)))]) == []
    assert check([("one", Idea(writes=()))]) == []


def test_an_idea_names_what_it_cannot_stand_and_what_it_cannot_be_without():
    (problem,) = check([], collect=[("jealous", Jealous()), ("other", Idea(writes=(KEPT,)))])
    assert problem == "'jealous' and 'other' do not go together: there is room for one."
    (problem,) = check([], sampler=("lonely", Lonely()))
    assert problem == "'lonely' needs 'friend' beside it: it cannot be alone."
    assert check([], sampler=("lonely", Lonely()), collect=[("friend", Idea())]) == []


class Particular(Idea):
    @property
    def conflicts(self):
        return {"other": "not with these fields"} if self.reads else {}


class Mixes(Idea):
    mixes_versions = True


def test_what_an_idea_cannot_stand_may_depend_on_its_fields():
    other = ("other", Idea(writes=(KEPT,)))
    assert check([], collect=[("particular", Particular()), other]) == []
    (problem,) = check([], collect=[("particular", Particular(reads=(REWARD,))), other])
    assert "not with these fields" in problem


def test_responses_of_several_versions_need_their_correction():
    (problem,) = check([], collect=[("mixes", Mixes())])
    assert problem.startswith("'mixes' has tokens written by older weights, for which objective 'clipped' does not")
    assert check([], collect=[("mixes", Mixes())], objective=CORRECTED) == []


class Scores(Idea):
    uses = ("actor",)


class Remembers(Idea):
    slot = "shared"


def test_rewards_of_a_value_run_are_not_compared_with_shaped_ones():
    values = ("values", Idea(reads=(REFERENCE_REWARDS, REWARD), writes=(OPTIMAL_VALUE,)))
    regression = ("regression", Idea(reads=(REWARD, OPTIMAL_VALUE)))
    shapes, judges = ("shapes", Idea(reads=(REWARD,), writes=(REWARD,))), ("judges", Idea(writes=(REWARD,)))
    assert check([values], collect=[judges], objective=regression) == []
    (problem,) = check([values], collect=[judges, shapes], objective=regression)
    assert "'values' compares rewards with those of the value run, which are not shaped, and 'shapes'" in problem


def test_what_responses_begin_with_is_not_written_after_them():
    drafts, writes = ("drafts", Idea(writes=(PREFIX,))), ("writes", Idea(writes=(TOKENS,)))
    assert check([("advantage", ADVANTAGES)], collect=[drafts, writes]) == []
    (problem,) = check([("advantage", ADVANTAGES)], collect=[writes, drafts])
    assert problem == "'drafts' writes what responses begin with, and 'writes' has written them before; put it first."


def test_next_token_laws_are_not_asked_of_an_engine_that_shows_none():
    asks, plain = (
        Chosen(UNIFORM, [("reuse", Reuse(log_lenience=0.0, laws=laws))], [], CORRECTED) for laws in (64, None)
    )
    assert check_laws(plain) == []
    (problem,) = check_laws(asks)
    assert problem.startswith("'reuse' asks the engine for next-token laws, which vLLM does not show")


class Grades(Idea):
    uses = ("engine", "judge")


def test_rewards_that_a_stage_asks_for_itself_are_not_compared_with_shaped_ones():
    greedy = ("greedy", Grades(reads=(REWARD,), writes=(BASELINE,)))
    shapes, judges = ("shapes", Idea(reads=(REWARD,), writes=(REWARD,))), ("judges", Grades(writes=(REWARD,)))
    assert check([("advantage", ADVANTAGES)], collect=[judges, greedy]) == []
    for collect in ([judges, shapes, greedy], [judges, greedy, shapes]):
        (problem,) = check([("advantage", ADVANTAGES)], collect=collect)
        assert "'greedy' compares rewards with those of rollouts of its own, which are not shaped" in problem


def test_a_loss_between_rollouts_of_a_prompt_is_given_two_of_them():
    def pairs(samples):
        sampler, objective = Uniform(prompts=4, samples=samples), Rebel()
        return check_combination(Chosen(("uniform", sampler), [], [], ("rebel", objective)))

    assert pairs(2) == []
    (problem,) = pairs(1)
    assert problem.endswith("'uniform' draws 1 of each; set its `samples` to at least 2.")


def ahead(collect=(), learn=(), objective=CORRECTED):
    return check_ahead(Chosen(UNIFORM, collect, learn, objective))


def test_ahead_of_the_actor_nothing_asks_it_and_beside_the_engine_nothing_asks_that():
    assert ahead(collect=[("writes", Asks())], learn=[("scores", Scores())]) == []
    (problem,) = ahead(collect=[("scores", Scores())])
    assert problem.startswith("'scores' asks the actor in `collect`, which learns at that time; leave schedule.ahead")
    (problem,) = ahead(learn=[("writes", Asks())])
    assert "'writes' asks the engine in `learn`" in problem


def test_an_engine_sleeps_where_nothing_asks_it_while_the_actor_learns():
    learns, asks = (
        Chosen(UNIFORM, [("writes", Asks())], [], CLIPPED),
        Chosen(UNIFORM, [], [("writes", Asks())], CLIPPED),
    )
    assert check_sleep(learns) == []
    (problem,) = check_sleep(asks)
    assert problem.startswith(
        "'writes' asks the engine in `learn`, which sleeps at that time; leave rollout.vllm.sleep"
    )


def test_what_responses_begin_with_is_not_settled_where_weights_come_in_the_middle():
    begins = [("drafts.reuse", Idea(writes=(PREFIX,))), ("generate", Idea(writes=(TOKENS,)))]
    (problem,) = check_in_flight(Chosen(UNIFORM, begins, [], CORRECTED))
    assert "'drafts.reuse' verifies what responses begin with under one version" in problem
    assert check_in_flight(Chosen(UNIFORM, begins[1:], [], CORRECTED)) == []


def test_no_memory_is_moved_from_both_sides_at_once():
    (problem,) = ahead(collect=[("one", Remembers())], learn=[("two", Remembers())])
    assert "'two' in `learn` shares the memory of 'one'" in problem
    (problem,) = ahead(learn=[("uniform", Idea())])
    assert "shares the memory of 'uniform'" in problem


def test_an_advantage_over_older_rollouts_needs_its_correction_and_a_regression_does_not():
    (problem,) = ahead(objective=CLIPPED)
    assert "objective 'clipped' does not correct" in problem
    assert ahead(objective=("regression", Idea(reads=(REWARD,)))) == []
