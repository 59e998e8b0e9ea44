from megatron_rl.telemetry.panels import GAPS, LEARNING, other_panels, panels


def test_a_chart_is_drawn_if_one_run_has_its_metric():
    found = panels(LEARNING, [{"reward/mean": 1}, {"actor/entropy": 1}])
    assert [(panel.title, panel.names) for panel in found] == [
        ("Reward", ["reward/mean", None]),
        ("Entropy", [None, "actor/entropy"]),
    ]


def test_gaps_are_drawn_on_a_logarithmic_axis():
    assert [panel.log for panel in panels(GAPS, [{"parity/mean": 1, "parity/p99": 1}])] == [True, True]


def test_every_metric_has_exactly_one_chart():
    metrics = {"reward/mean": 1, "shrinkage/weight": 1, "shrinkage/noise": 1, "skipped": 1}
    taken = panels(LEARNING, [metrics])
    rest = other_panels(taken, [metrics, {"screen/kept": 1}])
    assert {family: [panel.title for panel in found] for family, found in rest.items()} == {
        "screen": ["screen/kept"],
        "shrinkage": ["shrinkage/noise", "shrinkage/weight"],
        "update": ["skipped"],
    }
    assert rest["screen"][0].names == [None, "screen/kept"]
