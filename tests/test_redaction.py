import pytest

from megatron_rl.redaction import Redaction
from megatron_rl.secret_shapes import GONE

PLAIN = Redaction()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("HF_TOKEN=abc123", f"HF_TOKEN={GONE}"),
        ('{"api_key": "a b c", "step": 3}', f'{{"api_key": {GONE}, "step": 3}}'),
        ("password: hunter2, steps: 4", f"password: {GONE}, steps: 4"),
        ("got hf_abcdefghijklmnopqrstu from", f"got {GONE} from"),
        ("git clone https://ada:letmein@host/x", f"git clone https://{GONE}@host/x"),
        ("Authorization: Bearer abc.def", f"Authorization: {GONE}"),
        ("run --token Zx81supersecret --password hunter2 --tp 2", f"run --token {GONE} --password {GONE} --tp 2"),
        ("['--api-key', 'a b', '--tp', '2']", f"['--api-key', {GONE}, '--tp', '2']"),
        ("args:\n  - --token\n  - Zx81\n  - --tp\n  - 2", f"args:\n  - --token\n  - {GONE}\n  - --tp\n  - 2"),
        ("MYSQL_PWD=hunter22 in PWD=/work", f"MYSQL_PWD={GONE} in PWD=/work"),
        ("accesstoken=abc, authtoken: def", f"accesstoken={GONE}, authtoken: {GONE}"),
        ("password = 12345678", f"password = {GONE}"),
        ("secret: |\n  one\n\n  two\nsteps: 3\n", f"secret: {GONE}\nsteps: 3\n"),
        ("judge:\n  api_key: >-  # ours\n    one\n    two\n  steps: 3", f"judge:\n  api_key: {GONE}\n  steps: 3"),
        ("- token: |2\n    one\n- steps: 3", f"- token: {GONE}\n- steps: 3"),
        ("password:\n  - one\n  - two\nsteps: 3", f"password: {GONE}\nsteps: 3"),
        (r'{"password": "one\"two three", "steps": 3}', f'{{"password": {GONE}, "steps": 3}}'),
        (r"{\"api_key\": \"one two\", \"steps\": 3}", rf"{{\"api_key\": {GONE}, \"steps\": 3}}"),
        ('secret: "cut off in\nsteps: 3', f"secret: {GONE}\nsteps: 3"),
        ('command="x token=abc y"', f'command="x token={GONE} y"'),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nend", f"{GONE}\nend"),
        ("File /home/ada/x.py, /root/y and ada@example.org", "File ~/x.py, ~/y and [mail]"),
    ],
)
def test_secrets_go_and_the_rest_stays(text, left):
    assert PLAIN(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "sampling:\n  max_tokens: 56\nactor: {tp: 2}",
        '{"kind": "step", "tokens": 1234, "reward": 0.5, "key": 3}',
        "decoder.layers.mlp.linear_fc1.layer_norm_weight has 128 elements",
        "ValueError: expected 8 rollouts, got 7 (in runs/jspo/logs/rank_0003.log)",
        "/data/home/x /rooted",
        "tokens: 1234, token_versions: [3, 4], max_tokens=24, tokenizer: models/x, eos_token: '</s>'",
        "step 7/4000  tokens/s 375.7 in step_000007 of runs/jspo, key: 3",
        "megatron-rl train run.yaml --max-tokens 24 --tokenizer models/x sampling.max_tokens=24",
        "secrets:\n- are told nowhere",
    ],
)
def test_what_explains_a_run_is_left_alone(text):
    assert PLAIN(text) == text


def test_what_the_environment_holds_goes_wherever_it_stands():
    environment = {"MY_PASSWORD": "sesame street", "PIN_KEY": "1234", "USER": "max", "HOME": "/lustre/max"}
    redact = Redaction.of(environment, people=["root", "grace"])
    assert redact("sesame street, 1234, max, grace and root in /lustre/max/x with max_tokens of /lustre/maxi") == (
        f"{GONE}, 1234, [user], [user] and root in ~/x with max_tokens of /lustre/maxi"
    )


@pytest.mark.parametrize(
    "piece",
    [
        *("a", "a.", "A+", "A1/", "1a-", "eyJa-", "://", "a ", 'a="', "a@", "/home/", "--a ", "token=", "key: \\"),
        *("secret: |\n ", "secret:\n- ", "\n ", "authorization: "),
    ],
)
def test_a_long_line_is_looked_through_once(piece):
    text = piece * (200_000 // len(piece))
    assert PLAIN(f"{text}\nHF_TOKEN=abc123").endswith(f"HF_TOKEN={GONE}")
