from megatron_rl.cluster.settings import ClusterSettings
from megatron_rl.spec.load import load


def test_a_user_who_writes_nothing_gets_this_machine(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("extends: base/toy.yaml\n")
    assert dict(load(path).settings["cluster"].values)["address"] == ClusterSettings().address == ""


def test_a_deadline_is_given_on_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("extends: base/toy.yaml\n")
    assert (
        load(path, ["cluster.heartbeat_s=2", "cluster.placement=split"]).settings["cluster"].values["heartbeat_s"] == 2
    )
