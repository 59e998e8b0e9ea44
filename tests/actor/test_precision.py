import pytest

from megatron_rl.actor import precision
from megatron_rl.actor.precision import Precision, check
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
