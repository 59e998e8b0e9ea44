import tarfile

from megatron_rl.cli import main
from megatron_rl.commands.exits import DONE, WRONG
from tests.test_launch import data  # noqa: F401  # a fixture


def test_a_run_is_packed_and_what_is_inside_is_told(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_TOKEN", str(trained))
    assert main(["bundle", str(trained)]) == DONE
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "the run in [redacted] finished after 3 steps; the latest checkpoint is step_000003."
    with tarfile.open("run_bundle.tar.gz") as archive:
        names = [name.removeprefix("bundle/") for name in archive.getnames()]
    assert set(names) >= {"what_happened.txt", "plan.txt", "spec.yaml", "checkpoints.txt", "last_step.json"}
    assert [line.split()[-1] for line in said[2:-1]] == names


def test_a_run_whose_configuration_is_broken_is_packed_all_the_same(tmp_path, capsys):
    (tmp_path / "spec.yaml").write_text("actor: {tpp: 2}\n")
    assert main(["bundle", str(tmp_path), "--out", str(tmp_path / "x.tar.gz")]) == DONE
    with tarfile.open(tmp_path / "x.tar.gz") as archive:
        plan = archive.extractfile("bundle/plan.txt").read().decode()
    assert "'actor' has no key 'tpp'" in plan


def test_what_is_no_folder_is_refused(tmp_path):
    assert main(["bundle", str(tmp_path / "nowhere")]) == WRONG
