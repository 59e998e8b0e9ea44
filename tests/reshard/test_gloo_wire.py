import socket
import threading
from datetime import timedelta

import pytest
import torch
from torch.distributed import HashStore

from megatron_rl.reshard.buckets import Pair
from megatron_rl.reshard.digest import TransferError
from megatron_rl.reshard.gloo_wire import GlooWire, Place, own_address


def both(sender, receiver):
    failures = []

    def run(side):
        try:
            side()
        except RuntimeError as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(side,)) for side in (sender, receiver)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return failures


def wires(timeout_s: float = 30.0):
    store = HashStore()
    store.set_timeout(timedelta(seconds=timeout_s))
    return [GlooWire(store, Place(member, 1, 1), "127.0.0.1", timeout_s) for member in range(2)]


def test_messages_arrive_in_the_order_they_were_sent():
    ours, theirs = wires()
    taken = []

    def send():
        for number in range(9):
            ours.send(Pair(0, 0), 1000, lambda message, number=number: message.fill_(number))
        ours.flush()

    def receive():
        for _ in range(9):
            theirs.receive(Pair(0, 0), 1000, lambda message: taken.append(message.clone()))
        theirs.flush()

    assert both(send, receive) == []
    assert [int(message[0]) for message in taken] == list(range(9))
    assert all(torch.equal(message, message[:1].expand(1000)) for message in taken)


def test_a_sender_that_never_sends_is_named():
    ours, theirs = wires(2.0)
    (failure,) = both(ours.flush, lambda: theirs.receive(Pair(0, 0), 8, lambda _: None))
    assert isinstance(failure, TransferError)
    with pytest.raises(TransferError, match="rank 0 sent nothing to engine rank 0"):
        raise failure


def test_members_that_do_not_all_meet_are_counted():
    (ours, _) = wires(0.5)
    with pytest.raises(TransferError, match=r"1 ranks and 1 of the engine's did not all meet in 0.5 s"):
        ours.flush()


def test_a_meeting_point_that_nobody_keeps_is_named():
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with pytest.raises(TransferError, match=f"the meeting point at 127.0.0.1:{port} was not reached"):
        GlooWire.meet(("127.0.0.1", port), "key", Place(0, 1, 1), 0.5)


def test_this_machine_is_reached_at_the_address_by_which_it_reaches_the_others():
    assert own_address("127.0.0.1", 9) == "127.0.0.1"
