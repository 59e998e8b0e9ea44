from megatron_rl.actor.settings import ActorSettings
from megatron_rl.preview import lines, order, preview, processes, room
from megatron_rl.spec.load import load
from megatron_rl.spec.run import Part
from tests.test_launch import data, spec  # noqa: F401  # data is a fixture


def test_the_equation_counts_rows_steps_and_ranks(data, tmp_path):  # noqa: F811
    first = next(lines(spec(data, tmp_path, "actor.dp=2", "actor.update.steps=2")))
    assert first.startswith("4 prompts x 4 samples = 16 rows = 2 optimizer steps x 8 rows, over dp 2")
    screened = spec(data, tmp_path, "sampler={screening: {prompts: 3, screen: 2, more: 4}}", "learn=[advantage]")
    assert next(lines(screened)).startswith("3 prompts x (2 screening + 4 more) samples = 18 rows")


def test_processes_weights_and_memory_follow_from_the_cut(data, tmp_path):  # noqa: F811
    alone, cut = (list(lines(spec(data, tmp_path, *cut))) for cut in ((), ("actor.dp=2",)))
    assert alone[1] == "processes: actor and driver are one, the engine too"
    assert cut[1] == "processes: 2 ranks under Ray (dp 2), the engine in the driver"
    for told in (alone, cut):
        assert "ratio 1.000" in told[2]
    whole, shared = (float(told[3].split("optimizer ")[1].rstrip(")")) for told in (alone, cut))
    assert abs(whole - 2 * shared) < 0.2


def test_groups_of_vllm_are_said_to_share_gpus_or_to_have_their_own():
    vllm = Part(path="rollout", name="vllm", target="", given={}, values={"tp": 2, "replicas": 4}, place="run.yaml")
    shared, own = (next(processes(ActorSettings(tp=2), vllm, split)) for split in (False, True))
    assert shared.endswith("(tp 2), 4 vLLM groups of tp 2, each on one machine, sharing the GPUs of ranks")
    assert own.endswith("each on one machine, on GPUs of its own")


def test_the_order_says_which_weights_write_what(data, tmp_path):  # noqa: F811
    *_, last = lines(spec(data, tmp_path))
    assert last == "order: collect, learn, publish, in turn; batch s is written by version s"
    *_, last = lines(spec(data, tmp_path, "schedule.ahead=2", "actor.dp=2"))
    assert "batch s + 2 is written while the actor learns from batch s" in last
    assert last.endswith("by version max(0, s - 2)")
    *_, last = lines(spec(data, tmp_path, "schedule.ahead=1"))
    assert last.endswith("by version max(0, s - 1); engine and actor share this process, so no time is saved")
    assert order(2, is_one_process=False, in_flight=True).endswith("by versions max(0, s - 2) to s, as they come")


def test_responses_that_the_model_cannot_read_to_their_end_are_told():
    assert list(room(3072, 4096)) == []
    assert list(room(4096, 4096)) == [
        "room: the model reads 4096 tokens, prompt included, so responses end before sampling.max_tokens of 4096"
    ]


def test_the_text_is_still_the_run(data, tmp_path):  # noqa: F811
    run = spec(data, tmp_path)
    again = tmp_path / "again.yaml"
    again.write_text(preview(run))
    assert load(again).plain == run.plain
