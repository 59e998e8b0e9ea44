import pytest

from megatron_rl.secret_names import is_pass_phrase, is_secret


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "WANDB_API_KEY", "password", "dbPassword", "x-auth", "AWS_SECRET_ACCESS_KEY", "id_token"),
        *("accesstoken", "authtoken", "apikey", "MYSQL_PWD", "GITHUB_TOKEN_ADA", "refreshToken", "dbpassword", "pwd"),
    ],
)
def test_names_of_secrets_are_known(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("max_tokens", "tokenizer", "KeyError", "keys", "author", "CUDA_VISIBLE_DEVICES", "TOKENIZERS_PARALLELISM"),
        *(
            "token_versions",
            "tokenVersions",
            "token_ids",
            "eos_token",
            "pad_token_id",
            "per_token",
            "subtoken",
            "monkey",
        ),
        *("PWD", "OLDPWD", "tokens", "path"),
    ],
)
def test_names_that_only_look_alike_are_not(name):
    assert not is_secret(name)


def test_a_number_may_be_a_password_and_is_no_token():
    assert [is_pass_phrase(name) for name in ("DB_PASSWORD", "MYSQL_PWD", "token", "key")] == [True, True, False, False]
