r"""Finds places in other patients that look like a place in a scan.

  python tools/find_similar.py --embeddings EMBEDDINGS --scan SCAN_ID \
      --world=-60,-20,110 --scans LUNA16 --output similar.png

takes the cube whose middle is nearest to the place and prints the cubes of
other patients whose embeddings are most like its own; with --scans and --output
it draws them as well. Embeddings are whitened by those of all patients and then
compared by their cosine; --nowhiten compares them as they are. EMBEDDINGS is
what `beam_jobs.embed_scans` wrote. Choose its --stride for the precision that
is wanted: the next cube lies up to half the diagonal of a step away. 16,16,8
takes 4 x 4 x 4 times the work of cubes side by side.
"""

from collections.abc import Sequence
import os

from absl import flags
import matplotlib.figure
import numpy as np
import pandas as pd

from beam_jobs import embedding_files
from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import output_file
from transvw_tf2.discovery import retrieval
from transvw_tf2.scans import reader
from transvw_tf2.serving import embed

_EMBEDDINGS = flags.DEFINE_string(
  'embeddings', None, 'Folder that embed_scans wrote.', required=True
)
_SCANS = flags.DEFINE_string(
  'scans', None, 'Folder of the scans, for a picture.'
)
_SCAN = flags.DEFINE_string(
  'scan', None, 'Id of the scan of the place.', required=True
)
_VOXEL = flags.DEFINE_list('voxel', None, 'The place, voxel x,y,z.')
_WORLD = flags.DEFINE_list('world', None, 'The place, world x,y,z in mm (LPS).')
_COUNT = flags.DEFINE_integer('count', 5, 'Places to find.', lower_bound=1)
_PER_PATIENT = flags.DEFINE_integer(
  'per_patient', 1, 'Most places of one patient.', lower_bound=1
)
_WHITEN = flags.DEFINE_boolean(
  'whiten', True, 'Whiten the embeddings by those of all patients first.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'Picture (.png) to write.')

# Embeddings are whitened by those of so many scans at most.
_FIT_SCANS = 256
# HU shown as black and white.
_WINDOW = (-1000, 400)


def find_cube(
  scan: embedding_files.EmbeddedScan, world: Sequence[float]
) -> int:
  """Returns the row of the cube whose middle is nearest to a place.

  Args:
    scan: where the place is.
    world: mm (LPS).

  Raises:
    UserError: the place is not in the scan.
  """
  voxel = scan.geometry.world_to_voxel(world)
  last = np.array(scan.geometry.size) - 1
  if not ((voxel >= -0.5) & (voxel <= last + 0.5)).all():
    raise errors.UserError(
      f'place is voxel {_text(voxel)} of {scan.scan_id}, wanted 0,0,0 to'
      f' {_text(last)}: change --voxel or --world'
    )
  distances = np.linalg.norm(scan.middles - np.asarray(world), axis=1)
  return int(distances.argmin())


def find_similar(
  folder: str,
  query: embedding_files.EmbeddedScan,
  row: int,
  count: int,
  per_patient: int = 1,
  whiten: bool = True,
) -> pd.DataFrame:
  """Finds the places of other patients that are most like a cube.

  Reads the embeddings of one scan after the other. Each scan counts as a
  patient.

  Args:
    folder: of the embeddings.
    query: the scan of the cube.
    row: of the cube.
    count: places wanted.
    per_patient: most places of one patient.
    whiten: compare whitened embeddings, see `retrieval.Whitening`.

  Returns:
    A row per place: `rank` (0 is the cube itself), `scan_id`, its corner `x`,
    `y`, `z` (voxels), its middle `world_x`, `world_y`, `world_z` (mm) and
    `cosine`. Fewer than `count` where there are too few patients.

  Raises:
    UserError: there is no other patient, or a file is damaged.
  """
  scan_ids = embedding_files.list_scans(folder)
  whitening = _whiten_folder(folder, scan_ids) if whiten else None
  wanted = _transform(query.embeddings[[row]], whitening)
  found = []
  for scan_id in scan_ids:
    if scan_id == query.scan_id:
      continue
    scan = embedding_files.read_scan(folder, scan_id)
    (rows,), (cosines,) = retrieval.find_nearest(
      wanted, _transform(scan.embeddings, whitening), per_patient
    )
    found += [
      _make_row(scan, one, cosine)
      for one, cosine in zip(rows, cosines, strict=True)
    ]
  if not found:
    raise errors.UserError(
      f'{folder} holds no patient but {query.scan_id}: embed more scans'
    )
  # Rounded, so that what ties does not hang on the last bit.
  found.sort(key=lambda one: (-round(one['cosine'], 6), one['scan_id']))
  table = pd.DataFrame([_make_row(query, row, 1.0), *found[:count]])
  table.insert(0, 'rank', range(len(table)))
  return table


def _whiten_folder(folder, scan_ids) -> retrieval.Whitening:
  some = np.random.default_rng(0).permutation(scan_ids)[:_FIT_SCANS]
  return retrieval.fit_whitening(
    (embedding_files.read_scan(folder, one).embeddings for one in some),
    len(some),
  )


def _transform(rows, whitening: retrieval.Whitening | None) -> np.ndarray:
  return rows if whitening is None else whitening(rows)


def _make_row(scan, row, cosine) -> dict:
  return {
    'scan_id': scan.scan_id,
    **dict(zip('xyz', scan.places[row].tolist(), strict=True)),
    **{
      f'world_{axis}': round(float(one), 1)
      for axis, one in zip('xyz', scan.middles[row], strict=True)
    },
    'cosine': float(cosine),
  }


def draw_cubes(
  table: pd.DataFrame, scans: str, cube_shape: Sequence[int]
) -> matplotlib.figure.Figure:
  """Draws the places of `find_similar`, a row each, in three planes.

  The middle axial, coronal and sagittal plane in true proportions; the front
  is up in the first, the head in the others.

  Args:
    table: of `find_similar`.
    scans: folder of the scans.
    cube_shape: voxels of a cube along x, y and z.

  Raises:
    UserError: a scan is not in the folder.
    reader.ScanError: a scan cannot be read.
  """
  paths = embedding_files.find_paths(scans, table['scan_id'])
  figure = matplotlib.figure.Figure(
    figsize=(7, 2.1 * len(table)), layout='constrained'
  )
  axes = figure.subplots(len(table), 3, squeeze=False)
  for line, place in zip(axes, table.itertuples(), strict=True):
    scan = reader.read_scan(paths[place.scan_id], cube_shape=cube_shape)
    corner = (place.x, place.y, place.z)
    (cube,) = next(
      embed.cut_batches(scan.hu, np.array([corner]), cube_shape, 1)
    )
    for ax, (plane, sides) in zip(
      line, _planes(cube, scan.geometry.spacing), strict=True
    ):
      ax.imshow(
        plane,
        cmap='gray',
        vmin=_WINDOW[0],
        vmax=_WINDOW[1],
        extent=(0, sides[0], sides[1], 0),  # mm
      )
      ax.set_xticks([])
      ax.set_yticks([])
    title = 'query' if place.rank == 0 else f'cosine {place.cosine:.3f}'
    line[0].set_ylabel(f'{title}\n{_text(corner)}', fontsize=8)
    line[1].set_title(place.scan_id, fontsize=6)
  return figure


def _planes(cube, spacing):
  """Gives (plane, (width, height) in mm) of the three planes."""
  x, y, z = (side // 2 for side in cube.shape)
  width, depth, height = np.multiply(cube.shape, spacing).tolist()
  return (
    (cube[:, :, z].T, (width, depth)),
    (cube[:, y, ::-1].T, (width, height)),
    (cube[x, :, ::-1].T, (depth, height)),
  )


def _text(numbers) -> str:
  return ','.join(f'{one:g}' for one in np.round(numbers, 1).tolist())


def _parse_place(scan: embedding_files.EmbeddedScan) -> np.ndarray:
  """Returns the place that the flags tell, world mm."""
  given = [one for one in (_VOXEL, _WORLD) if one.value is not None]
  if len(given) != 1:
    raise errors.UserError(
      f'{len(given)} of --voxel and --world are given, wanted one of them'
    )
  (flag,) = given
  try:
    place = [float(one) for one in flag.value]
  except ValueError:
    place = []
  if len(place) != 3 or not np.isfinite(place).all():
    raise errors.UserError(
      f'--{flag.name} is {",".join(flag.value)!r}, wanted x,y,z such as'
      ' 90,80,40'
    )
  return (
    scan.geometry.voxel_to_world(place) if flag is _VOXEL else np.array(place)
  )


def _check_flags() -> None:
  """Raises UserError for flags that do not go together."""
  if _OUTPUT.value is None:
    if _SCANS.value is not None:
      raise errors.UserError(
        '--scans is for the picture: give its --output too, or leave it out'
      )
    return
  if _SCANS.value is None:
    raise errors.UserError('--scans is missing: a picture is drawn from them')
  if os.path.splitext(_OUTPUT.value)[1] != '.png':
    raise errors.UserError(
      f'--output is {_OUTPUT.value}, wanted a file that ends in .png'
    )
  output_file.check_place(_OUTPUT.value)


def main(argv):
  del argv
  _check_flags()
  folder = _EMBEDDINGS.value
  settings = embedding_files.read_settings(folder)
  scan = embedding_files.read_scan(folder, _SCAN.value)
  world = _parse_place(scan)
  row = find_cube(scan, world)
  off = np.linalg.norm(scan.middles[row] - world)
  table = find_similar(
    folder, scan, row, _COUNT.value, _PER_PATIENT.value, _WHITEN.value
  )
  if _OUTPUT.value:
    figure = draw_cubes(table, _SCANS.value, settings.cube_shape)
    with output_file.replacing(_OUTPUT.value) as path:
      figure.savefig(path, format='png', dpi=100)
  print(f'the middle of the nearest cube is {off:.1f} mm away from the place')
  print(table.to_string(index=False, float_format='{:.4g}'.format))


if __name__ == '__main__':
  mains.run(main)
