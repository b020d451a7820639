"""The table of faults: what was done, how often, what was lost and seen."""

import collections
from collections.abc import Iterator
import contextlib
import dataclasses

_COLUMNS = ('fault', 'times', 'data lost', 'what the user sees')


@dataclasses.dataclass
class _Row:
  times: int = 0
  lost: int = 0
  seen: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )


_rows: dict[str, _Row] = collections.defaultdict(_Row)


@contextlib.contextmanager
def trial(fault: str, seen: str = '') -> Iterator[list[str]]:
  """Counts a fault; what raises within it counts as data lost.

  Args:
    fault: what is done, and to what.
    seen: what the user sees.

  Gives a list for more of what the user sees.
  """
  row = _rows[fault]
  row.times += 1
  more = [seen] if seen else []
  try:
    yield more
  except BaseException:
    row.lost += 1
    raise
  finally:
    row.seen.update(more)


def lines() -> list[str]:
  """Returns the table in Markdown, and the number of kills."""
  if not _rows:
    return []
  found = [f'| {" | ".join(_COLUMNS)} |', '|---|---|---|---|']
  for fault, row in _rows.items():
    seen = '; '.join(text for text, _ in row.seen.most_common(2))
    found.append(f'| {fault} | {row.times} | {row.lost} | {seen} |')
  kills = [row for fault, row in _rows.items() if fault.startswith('kill -9')]
  return [
    *found,
    '',
    f'kills: {sum(row.times for row in kills)}, data lost:'
    f' {sum(row.lost for row in _rows.values())}',
  ]
