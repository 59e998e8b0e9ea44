import pytest

from megatron_rl.secret_shapes import GONE, without_secret_shapes

HEX = "5ea1b0d2"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("got hf_abcdefghijklmnopqrstu from", f"got {GONE} from"),
        ("wandb_v1_abcDEF_ghi_JKL123456 of", f"{GONE} of"),
        ("nvapi-abcDEF-1234567890 of", f"{GONE} of"),
        (f"npm_{'aB3' * 12} of", f"{GONE} of"),
        ("https://ada:letmein@host/x", f"https://{GONE}@host/x"),
        ("redis://:p4ssw0rd@host:6379/0", f"redis://{GONE}@host:6379/0"),
        ("curl -H 'Authorization: Basic YWRhOmxvdmVsYWNl' x", f"curl -H 'Authorization: {GONE}' x"),
        ('{"authorization": "Token abc def", "step": 3}', f'{{"authorization": "{GONE}", "step": 3}}'),
        ('Proxy-Authorization: Digest username="ada", response="abc"', f"Proxy-Authorization: {GONE}"),
        ("by Basic YWRhOmxvdmVsYWNl", f"by Basic {GONE}"),
        ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY of", f"{GONE} of"),
        ("'je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY'", f"'{GONE}'"),
        ("AKIAIOSFODNN7EXAMPLE", GONE),
        (f"key {HEX * 5} was", f"key {GONE} was"),
        (f"wandb login {HEX * 5}", f"wandb login {GONE}"),
        ("a1Gk" * 9, GONE),
        ("runs/a1Gk9" + "q3X" * 9, f"runs/{GONE}"),
    ],
)
def test_what_looks_like_a_secret_goes(text, left):
    assert without_secret_shapes(text) == left


@pytest.mark.parametrize(
    "text",
    [
        f"commit {HEX * 5} of main",
        f"lucky.py sha256 {HEX * 8}, {HEX.upper() * 8}",
        f"Worker ID: {HEX * 7}",
        "Basic training of basic arithmetic",
        "/lustre/runs/Qwen3/JSPO8B/checkpoints/actor1/step000002/rank0001/weights",
        "/lustre/Models/Qwen3ForCausalLM/8B/a1b2",
        "File megatron_rl/cluster/remote_sync.py, line 47, in publish",
        "docker://registry:5000/image@sha256",
        "npm_config_cache_folder, ssh://git@host",
        "12345678901234567890123456789012345678901234567890",
    ],
)
def test_hashes_paths_and_words_stay(text):
    assert without_secret_shapes(text) == text
