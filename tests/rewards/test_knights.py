import pytest

from megatron_rl.answers import Question
from megatron_rl.rewards.knights import Knights, roles

TRUTH = "Zoey is a knave, Liam is a knight, and Ann is a knave."


def score(response, truth=TRUTH):
    return Knights()(Question(response=response, answer=truth))


@pytest.mark.parametrize(
    "said",
    [
        r"\boxed{Zoey is a knave, Liam is a knight, and Ann is a knave.}",
        r"\boxed{Liam is a knight, and Ann is a knave, and Zoey is a knave}",
        r"\boxed{\text{Zoey is a knave,} \\ \text{Liam is a knight, Ann is a knave.}}",
        "\\boxed{Zoey: knave\nLiam: knight\nAnn: knave}",
        r"\boxed{ZOEY = KNAVE, liam = knight, ann = knave}",
        r"\boxed{Zoey and Ann are knaves, Liam is not a knave.}",
        "so <answer> (1) Zoey is a knave (2) Liam is a knight (3) Ann is a knave </answer>",
    ],
)
def test_any_wording_and_order_of_the_whole_assignment_is_right(said):
    assert score(said).correct == 1


@pytest.mark.parametrize(
    "said",
    [
        r"\boxed{Zoey is a knave, Liam is a knight}",
        r"\boxed{Zoey is a knave, Liam is a knight, and Ann is a}",
        r"\boxed{Zoey is a knight, Liam is a knight, and Ann is a knave}",
        r"\boxed{Zoey is a knave, Liam is a knight, Ann is a knave, and Bob is a knave}",
        r"\boxed{Zoey is a knave, Zoey is a knight, Liam is a knight, Ann is a knave}",
        r"\boxed{oey is a knave, Liam is a knight, Ann is a knave}",
    ],
)
def test_a_part_a_contradiction_or_a_stranger_is_wrong(said):
    found = score(said)
    assert found.correct == 0
    assert found.extracted is not None


@pytest.mark.parametrize("said", ["", "Zoey is a knave", r"\boxed{I do not know}", r"\boxed{Zoey is a knave"])
def test_no_conclusion_is_unparsable(said):
    assert score(said).extracted is None


def test_two_orders_extract_the_same_answer():
    first, second = score(r"\boxed{Al is a knight, Bo is a knave}"), score(r"\boxed{Bo is a knave, Al is a knight}")
    assert first.extracted == second.extracted == "al knight, bo knave"


def test_a_person_said_to_be_both_is_both():
    assert roles("Al is a knight. Al is a knave.") == {"al": "both"}
