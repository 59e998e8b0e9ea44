import pytest

from megatron_rl.data.prompt_file import user
from megatron_rl.data.published import BOXED, HASHES, PUBLISHED, SENTENCE
from megatron_rl.data.records import Record

QUIZ = "You meet 2 inhabitants: Al, and Bo. Al said Bo lies."
KNIGHTS = {
    "quiz": QUIZ,
    "names": ["Al", "Bo"],
    "knight_knave": {"knight": "knight", "knave": "knave", "a_knight": "a knight", "a_knave": "a knave"},
    "solution": [True, False],
    "solution_text": "Al is a knight, and Bo is a knave.",
    "solution_text_format": "(1) Al is a knight\n(2) Bo is a knave",
    "cot_head": "",
    "cot_repeat_steps": [],
    "cot_foot": "",
    "statements": "(('lying', 1), ('telling-truth', 1))",
    "index": 4,
}
VERL_ROW = {"data_source": "x", "ability": "math", "extra_info": {"index": "u-1"}}

ROWS = {
    "gsm8k": ({"question": "Q", "answer": "She has <<2*600=1200>> 1200.\n#### 1,200"}, "Q" + HASHES, "1200"),
    "math": (
        {"problem": "Q", "level": "Level 5", "type": "Algebra", "solution": r"\boxed{1} so \boxed{\frac{1}{2}}."},
        "Q" + BOXED,
        r"\frac{1}{2}",
    ),
    "math500": (
        {"problem": "Q", "solution": r"\boxed{9}", "answer": "3", "subject": "A", "level": 2, "unique_id": "t/1.json"},
        "Q" + BOXED,
        "3",
    ),
    "dapo17k": (VERL_ROW | {"prompt": user("Solve Q"), "reward_model": {"ground_truth": "34"}}, "Solve Q", "34"),
    "numina": ({"source": "amc", "problem": "Q", "solution": r"\boxed{5}", "messages": user("Q")}, "Q" + BOXED, "5"),
    "deepscaler": ({"problem": "Q", "answer": "-2", "solution": "long"}, "Q" + BOXED, "-2"),
    "open_rs": ({"problem": "Q", "solution": r"So \boxed{7}.", "level": "Hard"}, "Q" + BOXED, "7"),
    "knights": (KNIGHTS, QUIZ + SENTENCE, "Al is a knight, and Bo is a knave."),
    "knights_jspo": ({"question": QUIZ, "answer": "Al is a knight."}, QUIZ + SENTENCE, "Al is a knight."),
    "amc23": ({"id": 0, "question": "Q", "answer": 27.0, "url": "u"}, "Q" + BOXED, "27"),
    "aime24": ({"id": 60, "problem": "Q", "solution": r"So \boxed{204}.", "url": "u"}, "Q" + BOXED, "204"),
    "aime25": ({"problem": "Q", "answer": "70", "id": "0"}, "Q" + BOXED, "70"),
}


def converted(name, fields):
    return PUBLISHED[name].prompt(Record("f", 3, fields))


def test_every_set_has_a_row_here():
    assert set(ROWS) == set(PUBLISHED)


@pytest.mark.parametrize("name", ROWS)
def test_a_published_row_becomes_a_prompt(name):
    fields, text, answer = ROWS[name]
    prompt = converted(name, fields)
    assert prompt.prompt == user(text)
    assert prompt.answer == answer
    assert prompt.source


@pytest.mark.parametrize(
    ("name", "fields", "text", "answer"),
    [
        ("numina", {"problem": "Q", "answer": "x", "solution": "", "uuid": "u"}, "Q" + BOXED, "x"),
        ("aime24", {"ID": "2024-I-1", "Problem": "Q", "Solution": "", "Answer": 204}, "Q" + BOXED, "204"),
        ("aime24", {"id": 1, "problem": "Q", "solution": "", "answer": "025", "year": "2024"}, "Q" + BOXED, "025"),
        ("aime25", {"question": "Q", "answer": "70"}, "Q" + BOXED, "70"),
        ("amc23", {"id": 1, "problem": "Q", "answer": 0.5, "url": "u"}, "Q" + BOXED, "0.5"),
        ("dapo17k", {"prompt": user("Solve Q"), "label": "34"}, "Solve Q", "34"),
        (
            "knights_jspo",
            VERL_ROW | {"prompt": user(QUIZ + SENTENCE), "reward_model": {"ground_truth": "Al is a knight."}},
            QUIZ + SENTENCE,
            "Al is a knight.",
        ),
    ],
)
def test_other_spellings_of_the_same_set_are_understood(name, fields, text, answer):
    prompt = converted(name, fields)
    assert (prompt.prompt, prompt.answer) == (user(text), answer)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("gsm8k", {"question": "Q", "answer": "42"}, "no number after '####'"),
        ("gsm8k", {"answer": "#### 4"}, r"needs 'problem' or 'question'.* has \['answer'\]"),
        ("math", {"problem": "Q", "solution": r"\boxed{1"}, "no closed"),
        ("math", {"problem": "Q"}, "needs 'solution'"),
        ("numina", {"problem": "Q", "answer": "proof"}, "no answer to compare"),
        ("numina", {"problem": "Q", "answer": "notfound"}, "no answer to compare"),
        ("deepscaler", {"problem": "Q", "answer": "", "solution": "none"}, "no closed"),
        ("dapo17k", {"prompt": user("Q")}, "none of"),
        ("knights", {"quiz": QUIZ}, "needs 'solution_text'"),
    ],
)
def test_a_malformed_row_says_what_it_lacks(name, fields, said):
    with pytest.raises(ValueError, match=said):
        converted(name, fields)


def test_what_rewards_or_curricula_may_want_is_kept():
    assert converted("knights", KNIGHTS).extra["names"] == ["Al", "Bo"]
    assert converted("math", ROWS["math"][0]).extra == {"index": 3, "level": "Level 5", "type": "Algebra"}
    assert converted("dapo17k", ROWS["dapo17k"][0]).extra == {"index": "u-1"}
