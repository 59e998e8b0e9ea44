import subprocess
import sys

from megatron_rl.answers import Question


def test_a_question_survives_its_line_whatever_it_holds():
    question = Question(
        response="two\nlines \u202e right to left \u200b and \u2028 breaks", answer="1", extra={"a": [1]}, length=3
    )
    line = question.line()
    assert line.count(b"\n") == 1
    assert Question.of_line(line) == question


def test_reading_questions_wakes_nothing_heavy():
    program = "import sys, megatron_rl.answers; print({'torch', 'pyarrow', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"
