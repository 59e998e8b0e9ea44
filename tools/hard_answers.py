"""Answers to grade: ordinary ones, and ones made to break a grader, with a file that must never appear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_rl.answers import Question

Maker = Callable[[int, Path], str]

KINDS: dict[str, Maker] = {
    "tower of powers": lambda n, _: rf"\boxed{{9^{{9^{{9^{{{9 + n % 7}}}}}}}}}",
    "plain tower": lambda n, _: f"The final answer is 9**9**9**{9 + n} or 7^8^9^{n + 3}",
    "factorial": lambda n, _: rf"\boxed{{(({100000 + n}!)!)!}}",
    "braces": lambda n, _: r"\boxed" + "{" * (100_000 + n) + "1" + "}" * (100_000 + n),
    "few braces": lambda n, _: r"\boxed" + "{" * (430 + n % 50) + "1" + "}" * (430 + n % 50),
    "open braces": lambda n, _: r"\boxed{" + r"\frac{" * (2000 + n),
    "megabyte": lambda n, _: ("1+" * 524_288) + str(n),
    "megabyte of dollars": lambda n, _: "$1$ " * 262_144 + str(n),
    "right to left": lambda n, _: f"\u202e\\boxed{{\u200b{n}\u2066\ufeff}}\u202c",
    "zero width": lambda n, _: "\\boxed{" + "\u200b\u200d\u2060".join(str(n)) + "}",
    "unmatched latex": lambda n, _: rf"\boxed{{\left( \frac{{{n}}}{{ \sqrt[ \begin{{pmatrix}} & \\ }}",
    "digits": lambda n, _: r"\boxed{" + "7" * (5000 + n) + "}",
    "exponent": lambda n, _: rf"\boxed{{1e{999_999_999 + n}}} \boxed{{10^{{-{10**9 + n}}}}}",
    "code": lambda n, canary: rf"\boxed{{__import__('os').system('touch {canary}') + {n}}}",
    "code in dollars": lambda n, canary: (
        f"$open('{canary}','w').write('{n}')$ the answer is exec(\"open('{canary}')\")"
    ),
    "code without a box": lambda n, canary: f"```python\nimport pathlib; pathlib.Path('{canary}').touch()\n```\n1+{n}",
    "nested sums": lambda n, _: r"\boxed{" + r"\sum_{i=1}^{10^9}" * (n % 5 + 2) + "i^i}",
    "integral": lambda n, _: rf"\boxed{{\int_0^\infty \frac{{\sin(x^{{{n % 9 + 3}}})}}{{x^x + e^{{x!}}}} dx}}",
    "polynomial": lambda n, _: rf"\boxed{{(x+y+z+w+v+u)^{{{300 + n}}} = (x-y)^{{{300 + n}}}}}",
    "nothing": lambda _, __: "",
}


def hard(count: int, canary: Path) -> list[Question]:
    """`count` questions over all kinds in turn, each with a reference that makes the grader look."""
    kinds = list(KINDS.values())
    truths = ("42", r"\frac{1}{2}", "x^2+1", "1024")
    return [
        Question(response=kinds[n % len(kinds)](n // len(kinds), canary), answer=truths[n % len(truths)])
        for n in range(count)
    ]


def ordinary(count: int, first: int = 2) -> list[Question]:
    """Answers as models write them, half of them right; numbers go up from `first`."""
    written: list[tuple[Callable[[int], str], Callable[[int], str]]] = [
        (lambda n: rf"so the area is \boxed{{\frac{{{n}}}{{4}}}}.", lambda n: f"{n}/4"),
        (lambda n: rf"Therefore $x=\boxed{{{n}\sqrt{{3}}}}$.", lambda n: rf"\sqrt{{{3 * n * n}}}"),
        (lambda n: rf"We find \boxed{{({n}, {n + 1})}}", lambda n: rf"({n},{n + 1})"),
        (lambda n: rf"In total \boxed{{{n},000}} people", lambda n: f"{n}000"),
        (lambda n: rf"Hence \boxed{{x^2 + {n}x + {n}}}", lambda n: rf"x^2+{n}(x+1)"),
        (lambda n: rf"It is \boxed{{{n}\%}}", lambda n: f"{n / 100}"),
    ]
    return [
        Question(response=response(first + place), answer=answer(first + place + place // len(written) % 2))
        for place in range(count)
        for response, answer in [written[place % len(written)]]
    ]
