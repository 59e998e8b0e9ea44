import socket

import pytest

from megatron_rl.deaths import meaning, signal_of, size


@pytest.mark.parametrize(
    ("line", "signal"),
    [
        ("Fatal Python error: Bus error\n", "SIGBUS"),
        ("Fatal Python error: Segmentation fault", "SIGSEGV"),
        ("Fatal Python error: Aborted", "SIGABRT"),
        ("*** SIGBUS received at time=1795323862 on cpu 0 ***", "SIGBUS"),
        ("Fatal Python error: none_dealloc: deallocating None", ""),
        ("it said 'Fatal Python error: Aborted'", ""),
    ],
)
def test_a_signal_is_known_by_what_python_and_ray_write_of_it(line, signal):
    assert signal_of(line) == signal


def test_a_bus_error_is_a_full_shared_memory_whose_size_is_told_where_it_is_known():
    assert "free now" in meaning("SIGBUS", socket.gethostname())
    assert "`df -h /dev/shm` on another says" in meaning("SIGBUS", "another")
    assert "--shm-size" in meaning("SIGBUS", "another")


@pytest.mark.parametrize(
    ("signal", "said"),
    [("SIGKILL", "out-of-memory killer"), ("SIGSEGV", "native code"), ("SIGTRAP", "the end of its log")],
)
def test_every_signal_has_a_meaning(signal, said):
    assert said in meaning(signal, "")


def test_sizes_are_told_in_their_unit():
    assert (size(64 << 20), size(3 << 29)) == ("64 MiB", "1.5 GiB")
