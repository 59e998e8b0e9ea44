from megatron_rl import cli
from megatron_rl.commands import exits


def test_every_outcome_has_a_code_of_its_own_and_the_manual_names_it():
    codes = [exits.DONE, exits.FAILED, exits.WRONG, exits.STOPPED, exits.INTERRUPTED]
    assert len(set(codes)) == len(codes)
    assert all(f"{code} " in str(cli.__doc__) for code in codes)
