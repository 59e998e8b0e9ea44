from megatron_rl.answers import Question
from megatron_rl.rewards.knights_official import KnightsOfficial

TRUTH = "Zoey is a knave, and Liam is a knight."


def score(response):
    return KnightsOfficial()(Question(response=response, answer=TRUTH))


def test_the_published_rule_lets_a_sentence_lack_its_end():
    assert score(rf"\boxed{{{TRUTH}}}").correct == 1
    assert score(r"\boxed{Zoey is a knave, and Liam is a}").correct == 1
    assert score(r"\boxed{Zoey is a knave}").correct == 0


def test_the_published_rule_minds_the_order():
    assert score(r"\boxed{Liam is a knight, and Zoey is a knave.}").correct == 0


def test_the_box_is_told():
    assert score(r"\boxed{Zoey}").extracted == "Zoey"
    assert score("Zoey").extracted is None
