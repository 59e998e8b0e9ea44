import pytest

from tests import ranks
from tests.reshard.exchanges import exchange


@pytest.mark.parametrize("kind", ["split", "colocated"])
def test_weights_cross_between_gloo_ranks_in_many_buckets_and_in_one(kind):
    for bucket_bytes in (1024, 1 << 20):
        reports = ranks.run(exchange, world=4, kind=kind, wire="gloo", bucket_bytes=bucket_bytes)
        assert [report["wrong"] for report in reports] == [[]] * 4
        assert all(report["bytes"] == report["bound"] for report in reports)
        if bucket_bytes > 1024:
            assert all(report["messages"] <= 6 for report in reports)
