r"""Writes a page that shows the visual words of a built data set.

  python tools/word_atlas.py --data DATA/transvw_luna16/default/1.0.0 \
      --output atlas.html

A row per word, patients across from the nearest on, each cube as its middle
axial, coronal and sagittal plane in true proportions; beside them the scores of
the word, by which the rows can be sorted. One file that needs no network: the
pictures are in it, about 3 kB a cube.
"""

import base64
from collections.abc import Sequence
import dataclasses
import html
import io
import os

from absl import flags
import numpy as np
from PIL import Image

from transvw_tf2 import mains
from transvw_tf2 import output_file
from transvw_tf2 import schema
from transvw_tf2.discovery import quality as quality_lib
from transvw_tf2.discovery import vocabulary as vocabulary_lib
from transvw_tf2.training import built_data

_DATA = flags.DEFINE_string('data', None, 'Built data set.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Page to write.', required=True)
_PATIENTS = flags.DEFINE_integer(
  'patients', 5, 'Training patients shown per word.', lower_bound=1
)
_VALIDATION = flags.DEFINE_integer(
  'validation_patients', 1, 'Validation patients per word.', lower_bound=0
)

# HU shown as black and white.
_WINDOW = (-1000, 400)
# Pixels of the square that holds a plane.
_TILE = 64
_GAP = 2
# Grey around a plane that is no square, so that it is not taken for air.
_MARGIN = 72

# Column, its heading, how its numbers are written, and what they are.
_COLUMNS = (
  ('word', 'word', '04d', 'Number of the word.'),
  ('within', 'within', '.3f', 'Similarity with other cubes of the word.'),
  ('between', 'between', '.3f', 'Similarity with cubes of other words.'),
  ('silhouette', 'silhouette', '.3f', 'Of 1 - similarity; 1 is best.'),
  ('air', 'air', '.3f', 'Share of air around the patient, or in airways.'),
  ('error_mm', 'error mm', '.1f', 'Mean distance to the true place, if known.'),
)


@dataclasses.dataclass(frozen=True)
class Cell:
  """One cube as the page shows it.

  Attributes:
    example: of the data set.
    split: `schema.TRAIN` or `schema.VALIDATION`.
    similarity: cross-correlation with the first cube of the row.
    error_mm: distance to the true place, None where it is not known.
    reference: whether the word was chosen in this scan.
  """

  example: dict
  split: str
  similarity: float
  error_mm: float | None
  reference: bool


def read_rows(
  data: str,
  patients: int,
  validation_patients: int,
  quality: quality_lib.Quality | None,
) -> dict[int, list[Cell]]:
  """Reads the nearest patients of each word: training, then validation.

  Args:
    data: folder of the data set.
    patients: training patients of each word.
    validation_patients: validation patients of each word.
    quality: of the words, for their true errors.

  Raises:
    UserError: there is no such data set.
  """
  builder = built_data.open_data(data).builder
  words = vocabulary_lib.read_vocabulary(data).words
  references = {one.word: one.scan_id for one in words}
  rows: dict[int, list[tuple[str, dict]]] = {}
  counts = {schema.TRAIN: patients, schema.VALIDATION: validation_patients}
  for split, count in counts.items():
    if split not in builder.info.splits or not count:
      continue
    dataset = builder.as_dataset(split).filter(
      lambda one, count=count: (one['resolution'] == 0) & (one['rank'] < count)
    )
    examples = sorted(
      dataset.as_numpy_iterator(),
      key=lambda one: (one['word'], one['rank']),
    )
    for one in examples:
      rows.setdefault(int(one['word']), []).append((split, one))
  return {
    word: _make_cells(row, references[word], quality)
    for word, row in sorted(rows.items())
  }


def _make_cells(row, reference: str, quality) -> list[Cell]:
  thumbnails = [quality_lib.make_thumbnail(one['cube']) for _, one in row]
  similarities = quality_lib.correlate(np.stack(thumbnails))[0]
  known = quality.errors_mm if quality else {}
  return [
    Cell(
      example=one,
      split=split,
      similarity=float(similarity),
      error_mm=known.get((split, int(one['word']), int(one['rank']))),
      reference=one['scan_id'].decode() == reference,
    )
    for (split, one), similarity in zip(row, similarities, strict=True)
  ]


def draw_planes(cube: np.ndarray, extent) -> np.ndarray:
  """Draws the middle axial, coronal and sagittal plane beside each other.

  Args:
    cube: int16 `schema.CUBE_SHAPE` [x, y, z], HU.
    extent: mm [x, y, z].

  Returns:
    uint8 (64, 196); the front is up in the axial plane, the head in the others.
  """
  low, high = _WINDOW
  grey = (cube.clip(low, high).astype(np.float32) - low) * (255 / (high - low))
  x, y, z = (side // 2 for side in cube.shape)
  planes = (
    (grey[:, :, z].T, extent[0], extent[1]),
    (grey[:, y, ::-1].T, extent[0], extent[2]),
    (grey[x, :, ::-1].T, extent[1], extent[2]),
  )
  canvas = np.full((_TILE, 3 * _TILE + 2 * _GAP), _MARGIN, np.uint8)
  for index, (plane, width, height) in enumerate(planes):
    longest = max(width, height)
    sides = [
      max(1, round(_TILE * float(one) / float(longest)))
      for one in (width, height)
    ]
    image = Image.fromarray(np.rint(plane).astype(np.uint8))
    tile = np.asarray(image.resize(sides, Image.Resampling.BILINEAR))
    left = index * (_TILE + _GAP) + (_TILE - sides[0]) // 2
    top = (_TILE - sides[1]) // 2
    canvas[top : top + sides[1], left : left + sides[0]] = tile
  return canvas


def make_page(
  title: str,
  rows: dict[int, list[Cell]],
  quality: quality_lib.Quality | None,
) -> str:
  """Returns the whole page.

  Args:
    title: heading of the page.
    rows: the cells of each word.
    quality: of the words, None where it was not measured.
  """
  most = max(len(row) for row in rows.values())
  heads = [
    f'<th data-column="{name}" title="{help_text} Click to sort.">{text}</th>'
    for name, text, _, help_text in _COLUMNS
  ]
  heads += [f'<th class="patient">patient {n + 1}</th>' for n in range(most)]
  body = [
    _make_row(word, row, quality.words.get(word) if quality else None, most)
    for word, row in rows.items()
  ]
  lines = [f'{len(rows)} words']
  if quality:
    lines += quality.summary_lines()
  return _PAGE.format(
    title=html.escape(title),
    style=_STYLE,
    script=_SCRIPT,
    summary=''.join(f'<p>{html.escape(line)}</p>\n' for line in lines),
    heads=''.join(heads),
    body='\n'.join(body),
  )


def _make_row(word: int, row: Sequence[Cell], scores, most: int) -> str:
  values = {'word': word}
  if scores:
    values |= dataclasses.asdict(scores)
  cells = [
    _make_number(name, values.get(name), form) for name, _, form, _ in _COLUMNS
  ]
  cells += [_make_cell(one) for one in row]
  cells += ['<td></td>'] * (most - len(row))
  return f'<tr data-word="{word}">{"".join(cells)}</tr>'


def _make_number(name: str, value, form: str) -> str:
  key = '' if value is None else value
  text = '&ndash;' if value is None else f'{value:{form}}'
  return (
    f'<td class="number" data-column="{name}" data-sort="{key}">{text}</td>'
  )


def _make_cell(cell: Cell) -> str:
  one = cell.example
  extent = one['size'] * one['spacing']
  buffer = io.BytesIO()
  Image.fromarray(draw_planes(one['cube'], extent)).save(
    buffer, 'JPEG', quality=85
  )
  picture = base64.b64encode(buffer.getvalue()).decode('ascii')
  mm = ' x '.join(f'{side:.0f}' for side in extent)
  details = (
    f'{one["scan_id"].decode()}, voxel {", ".join(map(str, one["origin"]))},'
    f' {" x ".join(map(str, one["size"]))} voxels, {mm} mm, distance of the'
    f' scans {one["distance"]:.3f}'
  )
  caption = 'reference' if cell.reference else f'ncc {cell.similarity:.2f}'
  if cell.error_mm is not None:
    caption += f', {cell.error_mm:.1f} mm'
  if cell.split == schema.VALIDATION:
    caption += ', validation'
  return (
    f'<td class="patient"><img alt="word {int(one["word"])}, {caption}"'
    f' title="{html.escape(details)}"'
    f' src="data:image/jpeg;base64,{picture}">'
    f'<div>{caption}</div></td>'
  )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{summary}<p>Each cube in its middle axial, coronal and sagittal plane. ncc:
cross-correlation with the first cube of the row. Click a heading to sort.</p>
<table>
<thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody>
</table>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
body { font: 13px sans-serif; margin: 16px; background: #fff; color: #222; }
h1 { font-size: 20px; }
p { margin: 4px 0; }
table { border-collapse: collapse; margin-top: 12px; }
th { position: sticky; top: 0; background: #eee; padding: 4px 6px;
  text-align: left; }
th[data-column] { cursor: pointer; text-decoration: underline;
  text-align: right; white-space: nowrap; }
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
td { padding: 3px 6px; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.patient div { font-size: 11px; color: #555; }
img { display: block; width: 196px; height: 64px; }
"""

# The address may name the column to sort by, such as atlas.html#error_mm, or
# #-within for the largest first.
_SCRIPT = """
const body = document.querySelector('tbody');
function sortBy(column, down) {
  const key = (row) =>
    row.querySelector(`td[data-column="${column}"]`).dataset.sort;
  const rows = Array.from(body.rows);
  rows.sort((one, other) => {
    const a = key(one), b = key(other);
    if (a === '' || b === '') return (a === '') - (b === '');
    return down ? b - a : a - b;
  });
  body.append(...rows);
  for (const head of document.querySelectorAll('th[data-column]')) {
    head.removeAttribute('aria-sort');
    if (head.dataset.column === column)
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  }
}
for (const head of document.querySelectorAll('th[data-column]')) {
  head.addEventListener('click', () =>
    sortBy(head.dataset.column, head.ariaSort === 'ascending'));
}
const wanted = /^#(-?)(\\w+)$/.exec(location.hash);
if (wanted && document.querySelector(`th[data-column="${wanted[2]}"]`))
  sortBy(wanted[2], wanted[1] === '-');
"""


def main(argv):
  del argv
  output_file.check_place(_OUTPUT.value)
  data = built_data.find_data_dir(_DATA.value)
  quality = None
  if os.path.exists(os.path.join(data, quality_lib.QUALITY_FILE)):
    quality = quality_lib.read_quality(data)
  rows = read_rows(data, _PATIENTS.value, _VALIDATION.value, quality)
  page = make_page(f'Visual words of {os.path.abspath(data)}', rows, quality)
  output_file.write(_OUTPUT.value, page.encode())
  print(f'{len(rows)} words in {_OUTPUT.value}')


if __name__ == '__main__':
  mains.run(main)
