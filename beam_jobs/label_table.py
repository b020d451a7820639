"""Reads labels.csv, the table of your own labelled scans."""

import collections
from collections.abc import Sequence
import csv
import dataclasses
import math
import os

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import storage

TABLE_FILE = 'labels.csv'
SPLITS = (schema.TRAIN, schema.VALIDATION, schema.TEST)
_SHARES = (0.7, 0.15)
LABELS, MASKS, PLACES = 'labels', 'masks', 'places'
_COLUMNS = {
  LABELS: {'scan', 'label'},
  MASKS: {'scan', 'mask'},
  PLACES: {'scan', 'x', 'y', 'z', 'label'},
}


@dataclasses.dataclass(frozen=True, order=True)
class Row:
  """A row of the table.

  Attributes:
    scan: path of the scan, relative to the folder of the table where it is
      below it.
    split: of the scan.
    label: name of the class, '' with a mask.
    mask: path of the mask, '' without.
    place: world mm (LPS), () without.
  """

  scan: str
  split: str
  label: str = ''
  mask: str = ''
  place: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
  """What is to be learnt of which scan.

  Attributes:
    kind: LABELS, MASKS or PLACES.
    rows: sorted.
    classes: sorted names of the classes, none with masks.
  """

  kind: str
  rows: tuple[Row, ...]
  classes: tuple[str, ...]


def read(folder: str, classes: Sequence[str] = ()) -> Table:
  """Reads the table of a folder.

  Args:
    folder: of labels.csv and the scans.
    classes: their names in order; by default those of the table, sorted.

  Raises:
    errors.UserError: it is missing, or a row is wrong; the line is named.
  """
  path = os.path.join(folder, TABLE_FILE)
  if not storage.is_file(path):
    raise errors.UserError(
      f'no {TABLE_FILE} in {folder}: a table with the columns scan,label or'
      ' scan,mask or scan,x,y,z,label'
    )
  rows = []
  with storage.open_text(path) as file:
    table = csv.DictReader(file, skipinitialspace=True)
    try:
      columns = table.fieldnames or ()
      kind = _kind(path, columns)
      for row in table:
        rows.append(_parse(row, kind, classes, folder))
    # Text that is not UTF-8 is a ValueError too.
    except (ValueError, csv.Error) as error:
      raise errors.UserError(
        f'{path} line {table.line_num}: {error}'
      ) from error
  if not rows:
    raise errors.UserError(f'{path} has no rows below its header')
  rows = _check_splits(path, rows, 'split' in columns)
  _check_unique(path, rows)
  _check_names(path, rows, folder)
  names = classes or sorted({row.label for row in rows} - {''})
  return Table(kind, tuple(sorted(rows)), tuple(names))


def _kind(path, columns) -> str:
  kinds = [
    kind
    for kind, wanted in _COLUMNS.items()
    # Not as sets: a column that is there twice would hide the other.
    if sorted(columns) in (sorted(wanted), sorted(wanted | {'split'}))
  ]
  if not kinds:
    raise errors.UserError(
      f'{path} has the columns {", ".join(sorted(columns))}, wanted scan,label'
      ' or scan,mask or scan,x,y,z,label, and split if you like'
    )
  return kinds[0]


def _parse(row, kind, classes, folder) -> Row:
  if None in row or None in row.values():
    raise ValueError('it has not as many values as the header')
  for name in _COLUMNS[kind]:
    if not row[name].strip():
      raise ValueError(f'{name} is empty')
    if '\0' in row[name]:
      raise ValueError(f'{name} has a NUL character, which no path has')
  label = row.get('label', '').strip()
  if classes and kind != MASKS and label not in classes:
    raise ValueError(f'label is {label!r}, wanted one of {", ".join(classes)}')
  place = ()
  if kind == PLACES:
    place = tuple(float(row[axis]) for axis in 'xyz')
    if not all(map(math.isfinite, place)):
      raise ValueError(f'place is {place}, wanted finite mm')
  if '://' in row['scan']:
    raise ValueError(f'scan is {row["scan"]}, an address; wanted a path')
  # One name for a scan, or it could be in two splits.
  scan = os.path.normpath(row['scan'].strip())
  if os.path.isabs(scan) and scan.startswith(os.path.abspath(folder) + os.sep):
    scan = os.path.relpath(scan, os.path.abspath(folder))
  return Row(
    scan=scan,
    split=row.get('split', '').strip(),
    label=label,
    mask=row.get('mask', '').strip(),
    place=place,
  )


def _check_unique(path, rows) -> None:
  """Raises UserError where a scan, or a place in it, has two rows."""
  count = collections.Counter((row.scan, row.place) for row in rows)
  for (scan, place), number in sorted(count.items()):
    if number > 1:
      where = f' at {" ".join(map(str, place))} mm' if place else ''
      raise errors.UserError(
        f'{path} has {number} rows of {scan}{where}, wanted one'
      )


def _check_names(path, rows, folder) -> None:
  """Raises UserError where a scan has two names: it could be in two splits."""
  names = {}
  for scan in sorted({row.scan for row in rows}):
    other = names.setdefault(os.path.realpath(os.path.join(folder, scan)), scan)
    if other != scan:
      raise errors.UserError(
        f'{path}: {other} and {scan} are one scan, wanted one name for it'
      )


def _check_splits(path, rows, given) -> list[Row]:
  """Returns rows whose splits are right, drawn where none are given."""
  if not given:
    splits = divide({row.scan for row in rows})
    return [dataclasses.replace(row, split=splits[row.scan]) for row in rows]
  found = collections.defaultdict(set)
  for row in rows:
    if row.split not in SPLITS:
      raise errors.UserError(
        f'{path}: split of {row.scan} is {row.split!r}, wanted one of'
        f' {", ".join(SPLITS)}'
      )
    found[row.scan].add(row.split)
  for scan, splits in sorted(found.items()):
    if len(splits) > 1:
      raise errors.UserError(
        f'{path}: {scan} is in the splits {", ".join(sorted(splits))}, wanted'
        ' one for all rows of a scan'
      )
  return rows


def divide(scans) -> dict[str, str]:
  """Divides scans 70 : 15 : 15 by a stable hash; none empty from 3 on."""
  order = sorted(scans, key=lambda one: (schema.stable_hash(one), one))
  train = max(1, round(_SHARES[0] * len(order)))
  validation = max(1, round(_SHARES[1] * len(order)))
  # The later splits get at least one where there are enough.
  train = max(1, min(train, len(order) - 2))
  validation = max(0, min(validation, len(order) - train - 1))
  if len(order) == 2:
    validation = 1
  names = (
    [schema.TRAIN] * train
    + [schema.VALIDATION] * validation
    + [schema.TEST] * (len(order) - train - validation)
  )
  return dict(zip(order, names, strict=True))
