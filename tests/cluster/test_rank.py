from types import SimpleNamespace

import pytest

from megatron_rl import logs
from megatron_rl.cluster.rank import Answer, RankHost, _answered, interface_of
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.schema import SpecError


def test_a_result_comes_back_as_it_is():
    assert _answered(lambda: 3) == Answer(result=3)


def test_a_failure_comes_back_with_its_traceback_and_its_time():
    def fails():
        raise ZeroDivisionError("by nothing")

    answer = _answered(fails)
    assert "in fails" in answer.failure
    assert answer.error is None
    assert answer.at > 0


def test_a_failure_that_says_all_comes_back_itself():
    def refuses():
        raise SpecError("actor.tp is 3")

    answer = _answered(refuses)
    assert isinstance(answer.error, SpecError)


def test_the_interface_of_an_address_is_found():
    assert interface_of("127.0.0.1").startswith("lo")
    with pytest.raises(LayoutError, match=r"has the address 203\.0\.113\.9"):
        interface_of("203.0.113.9")


def test_a_rank_keeps_its_log_short_as_long_as_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "MOST_BYTES", 1000)
    monkeypatch.setattr(logs, "TAIL_BYTES", 100)
    rank = RankHost.__new__(RankHost)  # its own start would take this process's stdout
    rank.post, rank.resident = SimpleNamespace(log=tmp_path / "rank_0000.log"), SimpleNamespace(close=lambda: None)
    rank.post.log.write_bytes(b"begun\n" + b"something of no interest\n" * 100000 + b"it ends so\n")
    rank.close()
    kept = rank.post.log.read_bytes()
    assert kept.startswith(b"begun\n")
    assert kept.endswith(b"\nit ends so\n")
    assert len(kept) < logs.HEAD_BYTES + 1000
