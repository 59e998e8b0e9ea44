from tests.fakes.tiny_models import tiny_folder
from tests.rollout.opening import blueprint_of


def test_a_blueprint_says_what_the_weights_do_not(tmp_path):
    blueprint = blueprint_of(tiny_folder(tmp_path, "qwen2"))
    assert (blueprint.context, blueprint.qkv_bias, blueprint.qk_norm) == (128, True, False)
    assert len(blueprint.inverse_R) == blueprint.shape.head_dim // 2


def test_a_blueprint_says_how_a_token_finds_its_experts(tmp_path):
    blueprint = blueprint_of(tiny_folder(tmp_path, "qwen3_moe", norm_topk_prob=False))
    assert (blueprint.experts_per_token, blueprint.experts_normalised) == (2, False)
