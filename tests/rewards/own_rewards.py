"""What users might bring as a reward: good, bad and hanging."""

import os
import resource
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_rl.answers import Question, Score


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {
        "score": 0.5 + 0.5 * (solution_str == ground_truth),
        "acc": solution_str == ground_truth,
        "pred": data_source,
    }


def length_reward(question: Question) -> float:
    return question.length / 10


def two_arguments(solution, truth):
    return 0.0


LEAKED: list[int] = []


@dataclass(frozen=True, kw_only=True)
class Lingers:
    """Starts a server that serves all graders, and a thread that keeps its process from ending."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "server", daemon())
        threading.Thread(target=time.sleep, args=(600,)).start()

    def __call__(self, question: Question) -> Score:
        if question.response == "die":
            os._exit(3)
        return Score(reward=0.0, correct=0, extracted=str(self.server))


def daemon() -> int:
    """Its number; twice forked, so that it is nobody's child, and in a session of its own."""
    command = ["sh", "-c", "setsid sleep 600 > /dev/null & echo $!"]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def moody(question: Question) -> Score:
    """Does what the response says; silence costs a point."""
    if question.response == "sleep":
        time.sleep(600)
    if question.response == "sleep with a child":
        subprocess.Popen(["sleep", "600"])
        time.sleep(600)
    if question.response.startswith("daemon"):
        return Score(reward=0.0, correct=0, extracted=str(daemon()))
    if question.response == "sleep with a daemon":
        Path(question.answer).write_text(str(daemon()))
        time.sleep(600)
    if question.response == "raise":
        raise ValueError("no good")
    if question.response == "die":
        os._exit(3)
    if question.response == "eat memory":
        bytearray(1 << 30)
    if question.response == "fork":
        os.fork()
    if question.response == "leak files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        LEAKED.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(100))
    if question.response == "read a file":
        os.close(os.open(os.devnull, os.O_RDONLY))
    if question.response == "not a number":
        return Score(reward=float("nan"), correct=0, extracted=None)
    if question.response == "torch?":
        return Score(reward=1.0, correct=1, extracted=str(sorted({"torch", "pyarrow", "numpy"} & set(sys.modules))))
    if question.response == "print":
        print("chatter")
    while question.response == "print without end":
        print("x" * 1000)
    correct = int(question.response == question.answer)
    return Score(reward=float(correct) if question.response else -1.0, correct=correct, extracted=question.response)


def numpys_number(question: Question) -> dict[str, object]:
    import numpy as np  # only here: the other rewards of this file run in little memory

    return {"score": np.float32(0.5), "acc": np.bool_(question.response == question.answer)}


def text(question: Question) -> str:
    return "1.0"
