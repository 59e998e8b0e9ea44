import sys
from types import ModuleType

import pytest

from megatron_rl.actor import precision
from megatron_rl.actor.precision import Precision, check, check_hardware
from megatron_rl.spec.schema import SpecError


def test_fp8_is_refused_where_its_package_is_missing(monkeypatch):
    monkeypatch.setattr(precision, "find_spec", lambda _name: None)
    check(Precision(compute="bf16"))
    with pytest.raises(SpecError, match="'fp8', which needs the package transformer_engine, not installed here"):
        check(Precision(compute="fp8"))


def test_delayed_scaling_refuses_bf16_edges():
    with pytest.raises(SpecError, match="cannot be combined with the recipe 'delayed'"):
        Precision(compute="fp8", recipe="delayed", edge_layers_bf16=1)


def test_only_fp8_asks_for_token_counts():
    assert Precision(compute="bf16", recipe="mxfp8").token_multiple == 1
    assert Precision(compute="fp8", recipe="mxfp8").token_multiple == 32


class Blackwell:
    """What Transformer Engine answers on a GPU that multiplies in blocks of 32 and not of 128."""

    @classmethod
    def is_fp8_available(cls):
        return True, ""

    @classmethod
    def is_mxfp8_available(cls):
        return True, ""

    @classmethod
    def is_fp8_block_scaling_available(cls):
        return False, "needs another architecture"


class Old:
    """A release from before recipes."""

    @classmethod
    def is_fp8_available(cls):
        return True, ""


@pytest.fixture
def engine(monkeypatch):
    """Puts a class in the place where Transformer Engine keeps its answers."""

    def install(answers: type) -> None:
        for name in ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.fp8"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["transformer_engine.pytorch.fp8"].FP8GlobalStateManager = answers
        monkeypatch.setattr(precision, "find_spec", lambda _name: object())

    return install


def test_a_recipe_is_refused_with_the_reason_that_the_gpu_gives(engine):
    engine(Blackwell)
    for recipe in ("tensorwise", "delayed", "mxfp8"):
        check_hardware(Precision(compute="fp8", recipe=recipe))
    with pytest.raises(SpecError, match="'blockwise' cannot run here: needs another architecture"):
        check_hardware(Precision(compute="fp8", recipe="blockwise"))


def test_a_recipe_that_an_old_package_does_not_know_is_refused(engine):
    engine(Old)
    check_hardware(Precision(compute="fp8", recipe="tensorwise"))
    with pytest.raises(SpecError, match="'mxfp8' is not known to the installed transformer_engine; update it"):
        check_hardware(Precision(compute="fp8", recipe="mxfp8"))
