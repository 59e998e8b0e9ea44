import pyarrow.parquet as pq
import pytest

from megatron_rl.data.generate import GENERATED, generate


@pytest.mark.parametrize("name", GENERATED)
def test_the_same_seed_writes_the_same_file_and_another_one_does_not(name, tmp_path):
    paths = [tmp_path / f"{place}.parquet" for place in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        assert generate(GENERATED[name](), path, 14, seed) == 14
    tables = [pq.read_table(path) for path in paths]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    assert tables[0].column_names == ["prompt_id", "prompt", "source", "answer", "extra"]
