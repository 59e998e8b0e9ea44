from tools.hard_answers import KINDS, hard, ordinary


def test_every_kind_comes_round_and_no_two_answers_are_the_same_but_silence(tmp_path):
    asked = hard(3 * len(KINDS), tmp_path)
    responses = [each.response for each in asked if each.response]
    assert len(responses) == 3 * (len(KINDS) - 1)
    assert len(set(responses)) >= 0.8 * len(responses)


def test_ordinary_answers_differ_from_one_first_number_to_another():
    assert not {each.response for each in ordinary(60)} & {each.response for each in ordinary(60, first=1000)}
