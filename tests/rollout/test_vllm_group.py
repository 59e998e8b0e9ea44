import pytest

from megatron_rl.rollout.vllm_group import Group, GroupLost
from tests.rollout.scripted import order, post


@pytest.fixture
def group(tmp_path):
    started = Group.start(post(tmp_path), order(tmp_path))
    yield started
    started.kill()


def test_a_group_is_started_with_its_order_and_answers_commands(group):
    assert group.wait("ready", 30) == {"said": "ready"}
    group.say({"do": "receive", "version": 4})
    assert group.wait("received", 30)["reports"][0]["version"] == 4


def test_a_group_that_dies_is_explained_by_the_end_of_its_log(tmp_path):
    group = Group.start(post(tmp_path), order(tmp_path, "never starts"))
    with pytest.raises(GroupLost, match=r"(?s)vLLM group 0 died; its log .*ends with:\nno such model"):
        group.wait("ready", 30)
    group.kill()


def test_a_group_is_waited_for_no_longer_than_asked_and_what_it_cannot_do_is_told(tmp_path, group):
    with pytest.raises(GroupLost, match=r"did not say 'received' within 0.05 s"):
        group.wait("received", 0.05)
    other = Group.start(post(tmp_path, 1), order(tmp_path, "receives nothing"))
    other.say({"do": "receive", "version": 1})
    with pytest.raises(GroupLost, match="vLLM group 1 could not receive: TransferError: digest is 1 where 2 was due"):
        other.wait("received", 30)
    other.kill()


def test_a_closed_group_ends_by_itself_and_a_killed_one_at_once(tmp_path, group):
    group.wait("ready", 30)
    group.close()
    assert group.process.returncode == 0
    other = Group.start(post(tmp_path, 1), order(tmp_path))
    other.kill()
    assert other.process.returncode == -9
