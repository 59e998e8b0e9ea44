import signal

import pytest

from megatron_rl.signals import listening


def test_a_signal_calls_stop_with_the_reason_and_whom_it_calls_may_change():
    said: list[str] = []
    with listening(said.append) as ear:
        assert ear.heard() == ""
        signal.raise_signal(signal.SIGUSR1)
        ear.stop = lambda reason: said.append(f"later {reason}")
        signal.raise_signal(signal.SIGTERM)
        assert ear.heard() == ear.heard() == "stopped by SIGUSR1"
    assert said == ["stopped by SIGUSR1", "later stopped by SIGTERM"]


def test_other_signals_are_not_heard_and_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with listening(lambda _: None) as ear:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert ear.heard() == ""
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_signal_is_heard_where_its_handler_was_another_s():
    with listening(lambda _: None) as ear:
        mine = signal.signal(signal.SIGTERM, lambda *_: None)
        signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, mine)
        assert ear.heard() == "stopped by SIGTERM"
