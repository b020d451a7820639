r"""Writes embeddings of scans for TensorBoard's embedding projector.

  python tools/export_projector.py --embeddings EMBEDDINGS --scans LUNA16 \
      --output PROJECTOR
  tensorboard --logdir PROJECTOR

EMBEDDINGS is what `beam_jobs.embed_scans` wrote. A point is a cube; with it go
its scan and place, to colour and search by, and with --scans its middle axial
slice. Where there are more cubes than --points, some are drawn at random: a
browser holds some thousands.
"""

from collections.abc import Sequence
import itertools
import os

from absl import flags
import numpy as np
from PIL import Image

from beam_jobs import embedding_files
from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import schema
from transvw_tf2.scans import reader
from transvw_tf2.serving import embed
from transvw_tf2.training import reports

_EMBEDDINGS = flags.DEFINE_string(
  'embeddings', None, 'Folder that embed_scans wrote.', required=True
)
_SCANS = flags.DEFINE_string(
  'scans', None, 'Folder of the scans; without it points have no picture.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder to make for TensorBoard.', required=True
)
_POINTS = flags.DEFINE_integer('points', 5000, 'Most points.', lower_bound=2)
_SEED = flags.DEFINE_integer('seed', 1, 'Decides which.', lower_bound=0)

_COLUMNS = ('scan_id', 'x', 'y', 'z', 'world_x', 'world_y', 'world_z')
# Pixels of a picture. TensorBoard takes 8192 along a side of all of them.
_TILE = 32
_MOST_PICTURES = (8192 // _TILE) ** 2


def choose_rows(
  counts: Sequence[int], points: int, seed: int
) -> list[np.ndarray]:
  """Chooses rows of scans, all or at random.

  Args:
    counts: rows of each scan.
    points: most rows in all.
    seed: decides which.

  Returns:
    int64 rows of each scan, ascending.
  """
  chosen = np.arange(sum(counts))
  if len(chosen) > points:
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(chosen, points, replace=False))
  starts = np.cumsum([0, *counts])
  return [
    chosen[(chosen >= start) & (chosen < end)] - start
    for start, end in itertools.pairwise(starts)
  ]


def shrink_slice(cube: np.ndarray) -> np.ndarray:
  """Returns the middle axial slice, float32 (32, 32) [x, y] in [0, 1].

  Args:
    cube: int16 [x, y, z], HU.
  """
  middle = cube[:, :, cube.shape[2] // 2]
  grey = schema.scale_hu(
    middle.clip(schema.HU_MIN, schema.HU_MAX).astype(np.float32)
  )
  resized = Image.fromarray(grey).resize(
    (_TILE, _TILE), Image.Resampling.BILINEAR
  )
  return np.asarray(resized)


def export(
  folder: str, output: str, points: int, seed: int, scans: str | None = None
) -> tuple[int, int]:
  """Writes what the projector shows into a new folder.

  Args:
    folder: of the embeddings.
    output: folder to make.
    points: most points.
    seed: decides which, where there are more.
    scans: folder of the scans, for pictures.

  Returns:
    The number of points, and of all cubes.

  Raises:
    UserError: `output` exists or cannot be written, or an input is wrong.
    reader.ScanError: a scan cannot be read.
  """
  if os.path.lexists(output):
    raise errors.UserError(
      f'--output {output} exists; give another folder, or remove it'
    )
  if scans and points > _MOST_PICTURES:
    raise errors.UserError(
      f'--points is {points}, wanted {_MOST_PICTURES} at most with pictures'
    )
  settings = embedding_files.read_settings(folder)
  scan_ids = embedding_files.list_scans(folder)
  counts = [embedding_files.count_places(folder, one) for one in scan_ids]
  paths = embedding_files.find_paths(scans, scan_ids) if scans else {}
  embeddings, rows, pictures = [], [_COLUMNS], []
  chosen = choose_rows(counts, points, seed)
  for scan_id, of_scan in zip(scan_ids, chosen, strict=True):
    if not len(of_scan):
      continue
    scan = embedding_files.read_scan(folder, scan_id)
    embeddings.append(scan.embeddings[of_scan])
    for place, middle in zip(
      scan.places[of_scan].tolist(), scan.middles[of_scan], strict=True
    ):
      rows.append([scan_id, *place, *(f'{one:.1f}' for one in middle)])
    if scans:
      hu = reader.read_scan(paths[scan_id], cube_shape=settings.cube_shape).hu
      pictures += _draw(hu, scan.places[of_scan], settings.cube_shape)
  embeddings = np.concatenate(embeddings)
  try:
    reports.write_projector(
      output,
      embeddings,
      rows,
      np.stack(pictures)[..., np.newaxis, np.newaxis] if scans else None,
    )
  except OSError as error:
    raise errors.UserError(
      f'--output {output} cannot be written ({error}); give a folder in a'
      ' writable place'
    ) from error
  return len(embeddings), sum(counts)


def _draw(hu, places, cube_shape) -> list[np.ndarray]:
  return [
    shrink_slice(cubes[0])
    for cubes in embed.cut_batches(hu, places, cube_shape, 1)
  ]


def main(argv):
  del argv
  points, cubes = export(
    _EMBEDDINGS.value,
    _OUTPUT.value,
    _POINTS.value,
    _SEED.value,
    _SCANS.value,
  )
  print(f'{points} of {cubes} cubes: tensorboard --logdir {_OUTPUT.value}')


if __name__ == '__main__':
  mains.run(main)
