"""Every job writes the same files on every engine, hash for hash."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.beam_jobs import tiny_scans
from transvw_tf2 import schema
from transvw_tf2.models import unet3d
from transvw_tf2.scans import phantom
from transvw_tf2.scans import released_npy
from transvw_tf2.serving import export

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_TFDS = os.path.join(os.path.dirname(sys.executable), 'tfds')
_TWO = (
  '--runner=FnApiRunner',
  '--direct_num_workers=2',
  '--direct_running_mode=multi_processing',
)
_BORDERS = {
  **{'words': 3, 'xy_border': 4, 'z_border': 4, 'min_distance': 1},
  'max_soft_tissue': 1.0,
}

pytestmark = pytest.mark.long


@pytest.fixture(name='scans', scope='module')
def _scans(tmp_path_factory):
  """LUNA16 with nodules, lung masks, labels.csv and scans of no use."""
  folder = tmp_path_factory.mktemp('scans') / 'luna16'
  phantom.write_luna16(str(folder), 10, (96, 96, 64), seed=7)
  tiny_scans.write_labels(folder)
  tiny_scans.write_bad(folder / 'subset0')
  # Not a folder of known anatomy: the last ones have none.
  os.remove(folder / phantom.SETTINGS_FILE)
  return str(folder)


@pytest.fixture(name='released', scope='module')
def _released(tmp_path_factory):
  """Two rows of two words for each split."""
  folder = tmp_path_factory.mktemp('released')
  labels = np.array([[0.0], [0.0], [1.0], [1.0]])
  cubes = np.linspace(0, 1, 4 * 64 * 64 * 32).reshape(4, 64, 64, 32)
  for split, resolutions in (
    (schema.TRAIN, schema.TRAIN_RESOLUTIONS),
    (schema.VALIDATION, schema.VALIDATION_RESOLUTIONS),
  ):
    for one in resolutions:
      for kind, array in (('data', cubes), ('label', labels)):
        np.save(folder / released_npy.file_name(kind, split, one, 0), array)
  return str(folder)


@pytest.fixture(name='models', scope='module')
def _models(tmp_path_factory):
  """An encoder of cubes and one of thumbnails."""
  folder = tmp_path_factory.mktemp('models')
  found = {}
  for name, shape, write in (
    ('cubes', (64, 64, 32), export.export_encoder),
    ('thumbnails', (128, 128, 64), export.export_thumbnail_encoder),
  ):
    network = unet3d.UNet3D(
      base_filters=1, depth=2, skip_connections=name == 'cubes'
    )
    network.build((None, *shape, 1))
    found[name] = str(folder / name)
    write(network, found[name], {})
  return found


def _run(command):
  done = subprocess.run(
    command,
    capture_output=True,
    encoding='utf-8',
    cwd=_ROOT,
    stdin=subprocess.DEVNULL,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]


def _hashes(folder):
  found = {}
  for at, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(at, name)
      with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
      found[os.path.relpath(path, folder)] = digest
  return found


def _check_same(cluster, folder, make_command):
  """Runs a command on each engine; returns the files that all wrote."""
  found = {}
  for engine, options in (
    ('one', ()),
    ('two', _TWO),
    ('cluster', cluster.options),
  ):
    output = folder / engine / 'output'
    output.parent.mkdir()
    _run(make_command(str(output), options))
    found[engine] = _hashes(output.parent)
  assert found['two'] == found['one']
  assert found['cluster'] == found['one']
  return set(found['one'])


@pytest.mark.parametrize(
  ('builder', 'config'),
  [
    ('transvw_luna16', _BORDERS),
    ('transvw_luna16', _BORDERS | {'frame': 'lung'}),
    ('transvw_luna16', _BORDERS | {'writer': 'beam'}),
    ('luna16_nodules', {'task': 'false_positive_reduction'}),
    ('luna16_nodules', {'task': 'nodule_segmentation'}),
    ('luna16_nodules', {'task': 'lung_segmentation'}),
    ('labelled_scans', {'task': 'classification'}),
    ('transvw_released', {}),
  ],
)
def test_tfds_build(cluster, scans, released, tmp_path, builder, config):
  manual_dir = released if builder == 'transvw_released' else scans

  def make_command(output, options):
    return [
      *(_TFDS, 'build', builder, f'--imports=beam_jobs.{builder}'),
      *(f'--manual_dir={manual_dir}', f'--data_dir={output}'),
      f'--config={json.dumps({"name": "tiny"} | config)}',
      *(
        ['--beam_pipeline_options=' + ','.join(o[2:] for o in options)]
        if options
        else []
      ),
    ]

  names = _check_same(cluster, tmp_path, make_command)
  assert any('-train.tfrecord' in name for name in names)


def test_discover_words(cluster, scans, tmp_path):
  def make_command(output, options):
    flags = [f'--{name}={value}' for name, value in _BORDERS.items()]
    return [
      *(sys.executable, '-m', 'beam_jobs.discover_words', '--quality'),
      *(f'--scans={scans}', f'--output={output}', *flags, *options),
    ]

  names = _check_same(cluster, tmp_path, make_command)
  assert 'output/vocabulary.json' in names


def test_index_scans_and_describe_scans(cluster, scans, models, tmp_path):
  def make_index(output, options):
    return [
      *(sys.executable, '-m', 'beam_jobs.index_scans'),
      *(f'--scans={scans}', f'--output={output}', *options),
    ]

  (tmp_path / 'index').mkdir()
  names = _check_same(cluster, tmp_path / 'index', make_index)
  assert 'output/scan_index-train.tfrecord-00000-of-00002' in names

  def make_command(output, options):
    return [
      *(sys.executable, '-m', 'beam_jobs.describe_scans'),
      f'--data={tmp_path}/index/one/output',
      f'--descriptor_model={models["thumbnails"]}',
      *(f'--output={output}.npz', *options),
    ]

  (tmp_path / 'described').mkdir()
  assert _check_same(cluster, tmp_path / 'described', make_command) == {
    'output.npz'
  }


def test_embed_scans(cluster, scans, models, tmp_path):
  def make_command(output, options):
    return [
      *(sys.executable, '-m', 'beam_jobs.embed_scans'),
      *(f'--scans={scans}', f'--model={models["cubes"]}'),
      *(f'--output={output}', *options),
    ]

  names = _check_same(cluster, tmp_path, make_command)
  assert sum(name.startswith('output/places/') for name in names) == 10
