import pytest

from megatron_rl.reshard.layout import LayoutError, LocalTensor, Piece
from megatron_rl.reshard.tiles import Spot, index, local, tilings


def rows(name, start, stop, at=0, hf="w"):
    """A tensor that holds rows of a matrix of four columns from row `at` on."""
    piece = Piece(hf, ((start, stop), (0, 4)), ((at, at + stop - start), (0, 4)))
    return LocalTensor(name, (at + stop - start, 4), (piece,))


def test_a_box_is_cut_where_its_holders_change():
    made = tilings([rows("t", 0, 8)], index([[rows("a", 0, 6)], [rows("b", 4, 8, at=2)]]))
    assert [tiling.holders for tiling in made] == [(0,), (0, 1), (1,)]
    both = made[1].tiles[0]
    assert both.target == Spot("t", ((4, 6), (0, 4)))
    assert both.sources == (Spot("a", ((4, 6), (0, 4))), Spot("b", ((2, 4), (0, 4))))
    assert [tiling.elements for tiling in made] == [16, 8, 8]


def test_rows_meet_columns_in_a_grid():
    columns = [
        [LocalTensor(f"c{rank}", (8, 2), (Piece("w", ((0, 8), (2 * rank, 2 * rank + 2)), ((0, 8), (0, 2))),))]
        for rank in range(2)
    ]
    made = tilings([rows("t", 2, 6)], index(columns))
    assert [(tiling.holders, tiling.tiles[0].sources[0]) for tiling in made] == [
        ((0,), Spot("c0", ((2, 6), (0, 2)))),
        ((1,), Spot("c1", ((2, 6), (0, 2)))),
    ]


def test_a_holder_that_has_an_element_twice_gives_it_once():
    made = tilings([rows("t", 0, 4)], index([[rows("a", 0, 4), rows("b", 0, 4)]]))
    assert [(tiling.holders, len(tiling.tiles[0].sources)) for tiling in made] == [((0,), 1)]


def test_what_no_source_holds_is_refused():
    with pytest.raises(LayoutError, match=r"no source rank holds \(\(4, 8\), \(0, 4\)\) of w"):
        tilings([rows("t", 0, 8)], index([[rows("a", 0, 4)]]))


def test_a_stacked_tensor_keeps_its_leading_axis():
    piece = Piece("w", ((4, 8), (0, 4)), ((3, 4), (10, 14), (0, 4)))
    assert local(piece, ((5, 6), (0, 2))) == ((3, 4), (11, 12), (0, 2))
