"""The report of a conversion: a row for every tensor of the input."""

from collections.abc import Sequence
import csv
import dataclasses

from transvw_tf2 import output_file

LOADED = 'loaded'
LEFT_OUT = 'left out'


@dataclasses.dataclass(frozen=True)
class Row:
  """What became of a tensor.

  Attributes:
    source: its name in the input.
    target: its name in the output; empty where it is left out.
    shape: as in the input's Keras order of axes.
    state: LOADED or LEFT_OUT.
    why: the reason.
  """

  source: str
  target: str
  shape: tuple[int, ...]
  state: str
  why: str


HEADER = ('from', 'to', 'shape', 'state', 'why')


def left_out(source: str, shape: Sequence[int], why: str) -> Row:
  """Returns the row of a tensor that is left out."""
  return Row(source, '', tuple(shape), LEFT_OUT, why)


def as_table(rows: Sequence[Row]) -> str:
  """Returns the rows as text in columns."""
  cells = [HEADER, *map(_cells, rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return '\n'.join(
    '  '.join(map(str.ljust, line, widths)).rstrip() for line in cells
  )


def write_csv(path: str, rows: Sequence[Row]) -> None:
  """Writes the rows as CSV.

  Raises:
    errors.UserError: the file cannot be written.
  """
  with (
    output_file.replacing(path) as partial,
    open(partial, 'w', newline='', encoding='utf-8') as file,
  ):
    csv.writer(file).writerows([HEADER, *map(_cells, rows)])


def _cells(row: Row) -> tuple[str, ...]:
  shape = 'x'.join(map(str, row.shape)) or 'scalar'
  # Names come from a file that may hold anything.
  texts = (row.source, row.target or '-', shape, row.state, row.why)
  return tuple(text if text.isprintable() else ascii(text) for text in texts)
