import pytest

from megatron_rl.planner.timeline import Phase, simulate


def loop(shared: bool, ahead: int) -> tuple[Phase, ...]:
    engines = "actor" if shared else "engines"
    return (
        Phase("rollout", 6.0, (engines,), (("sync", 1 + ahead),)),
        Phase("update", 3.0, ("actor",), (("rollout", 0),)),
        Phase("sync", 1.0, ("actor",) if shared else ("actor", "engines"), (("update", 0),)),
    )


def test_on_policy_nothing_overlaps_wherever_it_stands():
    assert simulate(loop(shared=True, ahead=0)).step == pytest.approx(10)
    apart = simulate(loop(shared=False, ahead=0))
    assert apart.step == pytest.approx(10)
    assert apart.busy == pytest.approx({"actor": 0.4, "engines": 0.7})


def test_a_step_behind_the_busiest_machine_sets_the_pace():
    behind = simulate(loop(shared=False, ahead=1))
    assert behind.step == pytest.approx(7)
    assert behind.busy["engines"] == pytest.approx(1)


@pytest.mark.parametrize("ahead", [4, 12, 40])
def test_however_far_behind_no_step_is_shorter_than_its_busiest_machine_works(ahead):
    assert simulate(loop(shared=False, ahead=ahead)).step == pytest.approx(7)


def test_lagging_gains_nothing_on_shared_machines():
    assert simulate(loop(shared=True, ahead=1)).step == pytest.approx(10)
