import pytest

from megatron_rl.ops.text import gsm8k_answer, gsm8k_right, knights_right, last_boxed

TRUTH = "Alice is a knight, and Bob is a knave."


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{}", ""),
        (r"\boxed{a\boxed{b}}", "b"),
        (r"\boxed{1} then \boxed{open", None),
        ("nothing", None),
        ("\\boxed{two\nlines}", "two\nlines"),
    ],
)
def test_the_last_box_closes_its_own_braces(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 1 then #### 1,234", "1234"),
        ("#### -7", "-7"),
        ("#### 42.", "42."),
        ("####42", None),
        ("#### $5", None),
        ("#### 42" + " " * 300, None),
        ("#### 42" + " " * 290, "42"),
    ],
)
def test_a_strict_number_follows_four_hashes_near_the_end(text, answer):
    assert gsm8k_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"), [("it is 42 .", "42"), ("1,234", "1,234"), ("-3 and 4", "4"), ("none", None)]
)
def test_a_flexible_number_is_the_last_as_written(text, answer):
    assert gsm8k_answer(text, "flexible") == answer


def test_gsm8k_compares_as_text_and_names_its_modes():
    assert gsm8k_right("#### 42", "42")
    assert not gsm8k_right("#### 42.0", "42")
    assert not gsm8k_right("none", "42")
    with pytest.raises(ValueError, match="'strict' or 'flexible'"):
        gsm8k_answer("1", "loose")


@pytest.mark.parametrize(
    ("box", "right"),
    [
        (TRUTH, True),
        ("alice IS a knight and bob is a knave", True),
        ("  " + TRUTH + "  ", True),
        ("Alice is a knight, and Bob is a ", True),
        ("lice is a knight, and Bob is a knave", True),
        ("Alice is a knight", False),
        ("Bob is a knave, and Alice is a knight.", False),
        (r"\text{" + TRUTH + "}", False),
        ("Alice is a knight,\nand Bob is a knave.", False),
        ("", False),
        ("...", False),
    ],
)
def test_the_published_knights_rule_with_its_quirks(box, right):
    assert knights_right(rf"so \boxed{{{box}}}", TRUTH) is right


def test_the_last_box_speaks_for_a_knights_answer():
    assert not knights_right(rf"\boxed{{{TRUTH}}} no, \boxed{{Bob is a knight}}", TRUTH)
    assert not knights_right(TRUTH, TRUTH)
