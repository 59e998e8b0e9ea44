"""Prints a saved batch as a table, or one of its rollouts with every token.

python tools/show_batch.py runs/toy/rollouts/step_000012.parquet
python tools/show_batch.py runs/toy/rollouts/step_000012.parquet --row 3
python tools/show_batch.py runs/toy/rollouts/step_000012.parquet --columns reward advantage --rows 50
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import DICTIONARY, RESPONSE_TEXT, TOKENS, Column
from megatron_rl.telemetry.console import printable
from megatron_rl.telemetry.rollouts import read_pieces

USUAL = ("group", "slot", "verdict", "reward", "advantage", "tokens", "finish", "response_text")
_LONG = ("prompt_text", "response_text", "extra", "answer", "error")
"""Columns that take what room the others leave."""
_MOST_TEXT = 400


def main(arguments: list[str] | None = None, console: Console | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = console if console is not None else Console(highlight=False)
    if options.file.is_dir():
        print(f"{options.file} is a folder; name one of its files, as in step_000012.parquet", file=sys.stderr)
        return 1
    try:
        batch = Batch.read_parquet(options.file)
    except (OSError, ValueError) as error:
        print(f"cannot read {options.file} as a batch: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    try:
        if options.row is None:
            console.print(overview(batch, options.columns or USUAL, options.rows))
            _print_metrics(batch, console)
        else:
            _print_rollout(batch, options.row, read_pieces(options.file.parent), console)
    except (KeyError, IndexError) as error:
        print(error.args[0], file=sys.stderr)
        return 1
    return 0


def overview(batch: Batch, names: tuple[str, ...] | list[str], rows: int) -> Table:
    """One line a rollout. A token column shows its length if it holds ids, else its mean."""
    columns = (
        known(batch, names)
        if tuple(names) != USUAL
        else [DICTIONARY[name] for name in names if DICTIONARY[name] in batch]
    )
    title = f"{len(batch)} rollouts, {len(batch.table.column_names)} columns"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0))
    table.add_column("row", justify="right", style="dim")
    for column in columns:
        is_text = not column.is_ragged and isinstance(batch[column], list)
        table.add_column(
            column.name,
            justify="left" if is_text else "right",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if column.name in _LONG else None,
            min_width=None if column.name in _LONG else len(column.name),
        )
    head = batch.take(torch.arange(min(rows, len(batch))))
    cells = [[_cell(head, column, row) for column in columns] for row in range(len(head))]
    for row, line in enumerate(cells):
        table.add_row(str(row), *line)
    return table


def token_table(batch: Batch, row: int, pieces: dict[int, str]) -> Table:
    """One line a token, with every token column of response length."""
    token_T = batch.ragged(TOKENS).row(row)
    columns = [
        column
        for column in known(batch, batch.table.column_names)
        if column.is_ragged and column != TOKENS and len(batch.ragged(column).row(row)) == len(token_T)
    ]
    table = Table(title=f"{len(token_T)} tokens", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("t", justify="right", style="dim")
    table.add_column("token", justify="right")
    table.add_column("text")
    for column in columns:
        table.add_column(column.name, justify="right")
    values = [batch.ragged(column).row(row).tolist() for column in columns]
    for t, token in enumerate(token_T.tolist()):
        text = Text(printable(repr(pieces[token])[1:-1]) if token in pieces else "")
        table.add_row(str(t), str(token), text, *(_number(column[t]) for column in values))
    return table


def known(batch: Batch, names: tuple[str, ...] | list[str]) -> list[Column]:
    """The named columns; a column of a stage's own is described by its Arrow type."""
    missing = [name for name in names if name not in batch.table.column_names]
    if missing:
        raise KeyError(f"the batch has no column '{missing[0]}'; it has {', '.join(batch.table.column_names)}")
    return [
        DICTIONARY.get(name) or Column(name=name, type=batch.table.schema.field(name).type, meaning="")
        for name in names
    ]


def _print_rollout(batch: Batch, row: int, pieces: dict[int, str], console: Console) -> None:
    if not 0 <= row < len(batch):
        raise IndexError(f"--row must be one of 0..{len(batch) - 1}, got {row}")
    for column in known(batch, batch.table.column_names):
        if not column.is_ragged and column != RESPONSE_TEXT:
            value = batch[column][row]
            shown = value if isinstance(value, str) else _number(float(value))
            console.print(Text(f"{column.name:>16}  ", style="bold").append(printable(shown), style="not bold"))
    if RESPONSE_TEXT in batch:
        console.rule("response", align="left")
        console.print(Text(printable(batch.strings(RESPONSE_TEXT)[row])))
    if TOKENS in batch:
        console.print(token_table(batch, row, pieces))


def _print_metrics(batch: Batch, console: Console) -> None:
    for name, value in batch.metrics.items():
        console.print(Text(f"{name}  {_number(value)}", style="dim"))


def _cell(batch: Batch, column: Column, row: int) -> Text:
    if column.is_ragged:
        values = batch.ragged(column).row(row)
        if not values.is_floating_point():
            return Text(str(len(values)))
        return Text(_number(float(values.mean())) if len(values) else "")
    value = batch[column][row]
    if not isinstance(value, str):
        return Text(_number(float(value)))
    text = " ".join(printable(value).split())
    return Text(text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def _parser() -> argparse.ArgumentParser:
    summary, _, example = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="show_batch.py", description=summary, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE.parquet", help="a batch, such as rollouts/step_000012.parquet")
    parser.add_argument("--row", type=int, help="show this rollout in full, with its tokens and log-probabilities")
    parser.add_argument("--rows", type=int, default=20, help="rollouts in the table (default 20)")
    parser.add_argument(
        "--columns", nargs="+", metavar="NAME", help=f"columns of the table (default {' '.join(USUAL)})"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
