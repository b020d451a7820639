"""What jobs say before they begin: dry runs, and disks that are too small."""

import collections
import csv
import os
import re
import shutil
import subprocess
import sys

from absl.testing import flagsaver
import numpy as np
import pytest
import tensorflow_datasets as tfds

from beam_jobs import labelled_scans
from beam_jobs import luna16_nodules
from beam_jobs import transvw_luna16
from beam_jobs import transvw_released
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.models import unet3d
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader
from transvw_tf2.scans import released_npy
from transvw_tf2.serving import export

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_SETTINGS = {'words': 2, 'xy_border': 4, 'z_border': 4, 'min_distance': 1.0}
_REFUSED = r' has 1\.0 kB free, but the job needs up to \d+\.\d MB there; '


@pytest.fixture(scope='module', name='scans')
def _scans(tmp_path_factory):
  folder = tiny_scans.write_luna16(tmp_path_factory.mktemp('scans'))
  found = luna16.find_scans(folder)
  point = reader.read_geometry(found[0].path).voxel_to_world((40, 40, 24))
  with open(
    os.path.join(folder, 'candidates_V2.csv'), 'w', newline='', encoding='utf-8'
  ) as file:
    table = csv.writer(file)
    table.writerow(['seriesuid', 'coordX', 'coordY', 'coordZ', 'class'])
    for one in found:
      table.writerow([one.scan_id, *point, 1])
      table.writerow([one.scan_id, *point, 0])
  with open(
    os.path.join(folder, 'labels.csv'), 'w', newline='', encoding='utf-8'
  ) as file:
    table = csv.writer(file)
    table.writerow(['scan', 'label', 'split'])
    for number, one in enumerate(found[:4]):
      path = os.path.relpath(one.path, folder)
      table.writerow([path, 'ab'[number % 2], 'train'])
  return folder


@pytest.fixture(scope='module', name='model')
def _model(tmp_path_factory):
  network = unet3d.UNet3D(base_filters=1, depth=2)
  network.build((None, *schema.CUBE_SHAPE, 1))
  path = str(tmp_path_factory.mktemp('export') / 'model')
  export.export_encoder(network, path, {})
  return path


@pytest.fixture(name='small_disk')
def _small_disk(monkeypatch):
  usage = collections.namedtuple('usage', 'total used free')(9e9, 9e9, 1000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)


def _plan_line(capsys):
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith('plan: ')
  return line


def _size(scans, splits=('train', 'validation')):
  count = 0
  for one in luna16.find_scans(scans):
    if one.split in splits:
      raw = one.path.removesuffix('.mhd') + '.raw'
      count += os.path.getsize(one.path) + os.path.getsize(raw)
  return f'{count / 1e6:.1f} MB to read'


def test_a_dry_run_from_the_outside(scans, tmp_path):
  command = [sys.executable, '-m', 'beam_jobs.discover_words', '--words=2']

  def run(*more):
    return subprocess.run(
      [*command, f'--scans={scans}', *more],
      capture_output=True,
      text=True,
      cwd=tmp_path,
      env=os.environ | {'PYTHONPATH': _ROOT},
      check=False,
    )

  done = run('--dry_run')
  assert done.returncode == 0, done.stderr
  (line,) = done.stdout.splitlines()
  assert line.startswith(
    f'plan: 6 scans, {_size(scans)}; at most 2 words; about '
  )
  assert f' free in {tmp_path}; tfds build then makes 2 words, at most' in line
  # 2 words in 4 patients, 3 times, and in 2.
  assert ' at most 28 cubes, 7.3 MB in 2 shards, about ' in line
  assert os.listdir(tmp_path) == []
  # Anything else needs an output.
  done = run()
  assert done.returncode == 1
  assert 'error: ' in done.stderr
  assert 'Flag --output must have a value other than None' in done.stderr
  assert os.listdir(tmp_path) == []


def test_a_dry_run_of_discovery(import_main, scans, tmp_path, capsys):
  job = import_main('beam_jobs.discover_words')
  left = tmp_path / 'out.incomplete'
  left.mkdir()
  with flagsaver.flagsaver(
    scans=scans, output=str(tmp_path / 'out'), dry_run=True, **_SETTINGS
  ):
    job.main(
      [
        'discover_words',
        '--direct_num_workers=2',
        '--direct_running_mode=multi_processing',
      ]
    )
  line = _plan_line(capsys)
  assert ' with 2 workers; needs ' in line
  # Perhaps of a run that goes on at this moment.
  assert os.listdir(tmp_path) == ['out.incomplete']
  assert f' free in {tmp_path}; ' in line
  with pytest.raises(errors.UserError, match=r'--output .* exists; give'):
    job.run(scans, str(left), settings_lib.Settings(), dry_run=True)


def test_a_dry_run_of_the_index(import_main, scans, tmp_path, capsys):
  job = import_main('beam_jobs.index_scans')
  with flagsaver.flagsaver(
    scans=scans, output=str(tmp_path / 'out'), dry_run=True
  ):
    job.main(['index_scans'])
  assert _plan_line(capsys).startswith(
    f'plan: 6 scans, {_size(scans)}; at most 6 thumbnails, 12.6 MB in 2 shards;'
  )
  assert os.listdir(tmp_path) == []


def test_a_dry_run_of_embedding(import_main, scans, model, tmp_path, capsys):
  job = import_main('beam_jobs.embed_scans')
  output = str(tmp_path / 'out')
  with flagsaver.flagsaver(
    scans=scans, model=model, output=output, dry_run=True
  ):
    job.main(['embed_scans'])
  # 8 cubes of each of 7 scans, with those that are held out.
  size = _size(scans, ('train', 'validation', 'held_out'))
  assert _plan_line(capsys).startswith(
    f'plan: 7 scans, {size}; about 56 embeddings, '
  )
  assert os.listdir(tmp_path) == []
  # What is done is not planned again.
  job.run(scans, model, output)
  assert capsys.readouterr().out.startswith('plan: 7 scans, ')
  shutil.rmtree(os.path.join(output, 'scans'))
  os.mkdir(os.path.join(output, 'scans'))
  job.run(scans, model, output, dry_run=True)
  assert _plan_line(capsys).startswith('plan: 7 scans, ')
  job.run(scans, model, output)
  capsys.readouterr()
  job.run(scans, model, output, dry_run=True)
  assert _plan_line(capsys) == f'plan: nothing is left to do in {output}'


def test_embeddings_take_no_more_than_planned(tmp_path):
  from beam_jobs import embedding_files
  from transvw_tf2.scans import geometry
  from transvw_tf2.serving import embed

  rng = np.random.default_rng(1)
  for cubes, size in ((1, 4), (300, 512), (2000, 512)):
    folder = tmp_path / f'{cubes}_{size}'
    settings = embedding_files.Settings('m', (64, 64, 32), (64, 64, 32), size)
    embedding_files.prepare_folder(str(folder), settings)
    embedding_files.write_scan(
      str(folder),
      luna16.ScanFile('1.' + '2' * 60, 'x.mhd', 'train'),
      geometry.Geometry((512, 512, 250), (0.7, 0.7, 1.25)),
      embed.ScanEmbedding(
        rng.integers(0, 400, (cubes, 3)).astype(np.int32),
        rng.normal(size=(cubes, size)).astype(np.float32),
        rng.normal(size=size).astype(np.float32),
      ),
      (64, 64, 32),
    )
    taken = sum(
      (folder / name / ('1.' + '2' * 60 + '.parquet')).stat().st_size
      for name in ('places', 'scans')
    )
    planned = embedding_files.bytes_of(cubes, 1, size)
    assert taken <= planned
    # For long scans it is no loose bound.
    assert cubes < 2000 or planned < 1.4 * taken


def test_discovery_refuses_a_small_disk(
  import_main, scans, tmp_path, small_disk
):
  discover = import_main('beam_jobs.discover_words')
  with pytest.raises(errors.UserError, match=_REFUSED):
    discover.run(
      scans, str(tmp_path / 'out'), settings_lib.Settings(**_SETTINGS)
    )
  with pytest.raises(errors.UserError, match=_REFUSED):
    discover.run(
      scans, str(tmp_path / 'out'), settings_lib.Settings(), dry_run=True
    )
  assert os.listdir(tmp_path) == []


def test_the_index_refuses_a_small_disk(
  import_main, scans, tmp_path, small_disk
):
  index = import_main('beam_jobs.index_scans')
  with pytest.raises(errors.UserError, match=_REFUSED):
    index.run(scans, str(tmp_path / 'out'))
  assert os.listdir(tmp_path) == []


def test_embedding_refuses_a_small_disk(
  import_main, scans, model, tmp_path, small_disk
):
  embed = import_main('beam_jobs.embed_scans')
  with pytest.raises(errors.UserError, match=r' has 1\.0 kB free, but the job'):
    embed.run(scans, model, str(tmp_path / 'out'))
  assert os.listdir(tmp_path) == []


def _write_released(folder):
  os.makedirs(folder)
  for split, resolution in (('train', 0), ('train', 1), ('train', 2)):
    for kind, array in (
      ('data', np.full((3, *schema.CUBE_SHAPE), 0.5, np.float32)),
      ('label', np.array([[0.0], [0.0], [1.0]])),
    ):
      name = released_npy.file_name(kind, split, resolution, 0)
      np.save(os.path.join(folder, name), array)
  return folder


@pytest.mark.parametrize(
  ('module', 'fields', 'line'),
  [
    (
      transvw_luna16,
      _SETTINGS,
      'plan: 6 scans, .* to read twice; 2 words, at most 28 cubes, 7.3 MB in 2'
      ' shards; about ',
    ),
    (
      transvw_released,
      {},
      'plan: 3 files, 4.7 MB to read; 2 words, 9 cubes, 2.4 MB in 1 shard;'
      ' about ',
    ),
    (
      luna16_nodules,
      {'task': 'false_positive_reduction', 'cube_shape': (64, 64, 32)},
      'plan: 7 scans, .* to read; at most 14 cubes, 3.7 MB in 3 shards; about ',
    ),
    (
      labelled_scans,
      {'task': 'classification', 'cube_shape': (64, 64, 32)},
      'plan: 4 scans, .* to read; at most 4 cubes, 1.0 MB in 1 shard; about ',
    ),
  ],
)
def test_builders_refuse_a_small_disk(
  scans, tmp_path, small_disk, capsys, module, fields, line
):
  data_dir = tmp_path / 'data'
  manual_dir = scans
  if module is transvw_released:
    manual_dir = _write_released(tmp_path / 'npy')
  builder = module.Builder(
    data_dir=str(data_dir),
    config=module.Builder.builder_config_cls(name='tiny', **fields),
  )
  with pytest.raises(errors.UserError, match=_REFUSED):
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=str(manual_dir))
    )
  out = capsys.readouterr().out
  assert re.search(line, out), out
  left = [name for _, _, names in os.walk(data_dir) for name in names]
  # TFDS notes which config is the default one before it begins.
  assert left in ([], ['metadata.json'])
