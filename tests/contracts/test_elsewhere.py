"""A checkpoint of a run, exported, is served by vLLM's own server as it is, and answers what our engine answers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from tokenizers.models import WordLevel
from transformers import AutoTokenizer

from megatron_rl import launch
from megatron_rl.batch.columns import TOKENS
from megatron_rl.cli import main
from megatron_rl.data.arithmetic import Arithmetic
from megatron_rl.ops.logprobs import Sampling
from tests.rollout.opening import asked, open_embedded
from tests.test_launch import data, spec  # noqa: F401  # data is a fixture

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

LENGTH = 24
START_S = 300
# The program `vllm` asks for a distribution of that name, which vLLM's CPU build is not; the server is the same.
SERVE = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--dtype", "float32")
QUIET = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def exported(data, tmp_path_factory):  # noqa: F811
    """The folder that `megatron-rl convert` makes of a run's checkpoint, from a model that knows how to chat."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(data / "model", folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    # A server that finds a chat template tries it, with words that our tokenizer lacks.
    tokenizer.backend_tokenizer.model = WordLevel(tokenizer.get_vocab(), unk_token=tokenizer.pad_token)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder / "model")
    short = ("schedule.steps=2", "schedule.save_every=2", f"model.folder={folder / 'model'}")
    launch.train(spec(data, folder, *short))
    checkpoint = folder / "run" / "checkpoints" / "step_000002" / "actor"
    assert main(["convert", str(checkpoint), str(folder / "exported"), "--like", str(folder / "model")]) == 0
    return folder / "exported"


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with served(exported, log) as address:
        yield address


@contextmanager
def served(folder: Path, log: Path):
    """The address of a server that has come up; the server and all that it starts is a group of processes that ends."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [*SERVE, "--model", folder.name, "--port", str(port), "--max-model-len", "128", "--enforce-eager"]
    with log.open("w") as written:
        process = subprocess.Popen(
            command, cwd=folder.parent, env=os.environ | QUIET, stdout=written, stderr=written, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + START_S
        while not is_up(address):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < ends, log.read_text()[-3000:]
            time.sleep(1)
        yield address
    finally:
        process.terminate()  # killed at once it would leave shared memory behind
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_up(address: str) -> bool:
    try:
        with urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


def post(address: str, path: str, **said: object) -> dict:
    body = json.dumps({"model": "exported", "max_tokens": LENGTH, "temperature": 0, **said}).encode()
    request = Request(f"{address}/v1/{path}", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def ours(exported):
    """Questions, and what the embedded engine says to them at temperature 0 with the exported weights."""
    questions = [prompt.prompt for prompt in Arithmetic(hardest=4).prompts(12, seed=5)]
    tokenizer = AutoTokenizer.from_pretrained(exported)
    engine = open_embedded(exported, end=(tokenizer.eos_token_id,), max_tokens=LENGTH)
    written = engine.generate(asked([tokenizer.encode(each) for each in questions]), Sampling(temperature=0))
    return questions, [each.tolist() for each in written[TOKENS].rows()]


def test_greedy_completions_of_the_server_are_those_of_our_engine(server, ours):
    questions, expected = ours
    answer = post(server, "completions", prompt=questions, return_token_ids=True)
    assert [choice["token_ids"] for choice in answer["choices"]] == expected


def test_the_server_chats_with_the_template_of_the_run_s_model(server, exported, ours):
    questions, expected = ours
    decode = AutoTokenizer.from_pretrained(exported).decode
    for question, tokens in zip(questions[:3], expected, strict=False):
        answer = post(server, "chat/completions", messages=[{"role": "user", "content": question}])
        said = answer["choices"][0]["message"]["content"] or ""
        assert said.strip() == decode(tokens, skip_special_tokens=True).strip()
