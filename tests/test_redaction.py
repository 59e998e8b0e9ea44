import pytest

from megatron_rl.redaction import GONE, Redaction, is_secret

PLAIN = Redaction()


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "password", "dbPassword", "x-auth", "AWS_SECRET_ACCESS_KEY"]
)
def test_names_of_secrets_are_known(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["max_tokens", "tokenizer", "KeyError", "keys", "author", "CUDA_VISIBLE_DEVICES"])
def test_names_that_only_look_alike_are_not(name):
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("HF_TOKEN=abc123", f"HF_TOKEN={GONE}"),
        ('{"api_key": "a b c", "step": 3}', f'{{"api_key": {GONE}, "step": 3}}'),
        ("password: hunter2, steps: 4", f"password: {GONE}, steps: 4"),
        ("got hf_abcdefghijklmnopqrstu from", f"got {GONE} from"),
        ("git clone https://ada:letmein@host/x", f"git clone https://{GONE}@host/x"),
        ("Authorization: Bearer abc.def", f"Authorization: {GONE} {GONE}"),
        (f"key {'0a' * 20} was", f"key {GONE} was"),
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


@pytest.mark.parametrize("piece", ["a", "a.", "A+", "1a-", "eyJa-", "://", "a ", 'a="', "a@", "/home/"])
def test_a_long_line_is_looked_through_once(piece):
    text = piece * (200_000 // len(piece))
    assert PLAIN(f"{text}\nHF_TOKEN=abc123").endswith(f"HF_TOKEN={GONE}")
