from tools import bench_rewards


def test_both_rates_and_the_cost_of_hard_answers_are_printed(capsys):
    assert bench_rewards.main(["--answers", "30", "--rounds", "1", "--hard", "10", "--deadline-s", "0.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*["bare", "pool,"] * 2, "10", "verdicts", "rate", "executed"]
    assert lines[1].endswith("of bare")
    assert lines[3].endswith("of bare")
    assert lines[-1].endswith("nothing")
