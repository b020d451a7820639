"""A real chest CT goes the whole way, as one patient among synthetic ones."""

import csv
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests import real_ct
from transvw_tf2 import schema
from transvw_tf2.models import unet3d
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader
from transvw_tf2.serving import embed
from transvw_tf2.serving import export
from transvw_tf2.training import built_data

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ID = 'lung1_image'
# The real scan has 48 slices.
_SETTINGS = {'words': 3, 'xy_border': 30, 'z_border': 2, 'min_distance': 1}


@pytest.fixture(name='scans', scope='module')
def _scans(tmp_path_factory):
  """Own layout: the real scan and two phantoms to train, one to validate."""
  folder = tmp_path_factory.mktemp('scans')
  for split in (schema.TRAIN, schema.VALIDATION):
    (folder / split).mkdir()
  shutil.copy(real_ct.path(), folder / schema.TRAIN)
  for index in range(3):
    one = phantom.make_patient(5, index, (256, 256, 56))
    split = schema.VALIDATION if index == 2 else schema.TRAIN
    reader.write_scan(
      str(folder / split / f'{one.scan_id}.mhd'), one.hu, one.geometry
    )
  return folder


def _run(*command, cwd):
  done = subprocess.run(
    command, capture_output=True, text=True, cwd=cwd, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def test_discovery_takes_it_as_a_patient(scans, tmp_path):
  output = tmp_path / 'vocabulary'
  _run(
    *(sys.executable, '-m', 'beam_jobs.discover_words'),
    *(f'--scans={scans}', f'--output={output}'),
    *(f'--{name}={value}' for name, value in _SETTINGS.items()),
    cwd=_ROOT,
  )
  with open(output / 'instances.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert {row['word'] for row in rows if row['scan_id'] == _ID} == {
    row['word'] for row in rows
  }
  assert len((output / 'rejected.csv').read_text().splitlines()) == 1


def test_its_cubes_are_in_the_data_set(scans, tmp_path):
  config = ', '.join(f'"{name}": {value}' for name, value in _SETTINGS.items())
  _run(
    *(os.path.join(os.path.dirname(sys.executable), 'tfds'), 'build'),
    *('transvw_luna16', f'--manual_dir={scans}', f'--data_dir={tmp_path}'),
    f'--config={{"name": "real", {config}}}',
    cwd=os.path.join(_ROOT, 'beam_jobs'),
  )
  hu = reader.read_scan(real_ct.path()).hu
  builder = built_data.open_data(str(tmp_path)).builder
  native = [
    one
    for one in builder.as_dataset(schema.TRAIN).as_numpy_iterator()
    if one['scan_id'] == _ID.encode() and one['resolution'] == 0
  ]
  assert native
  for one in native:
    x, y, z = one['origin']
    box = hu[x : x + 64, y : y + 64, z : z + 32]
    np.testing.assert_array_equal(one['cube'], np.clip(box, -1000, 1000))
    np.testing.assert_allclose(one['spacing'], (0.5703125, 0.5703125, 5.0))


def test_it_is_embedded(tmp_path):
  model = unet3d.UNet3D(base_filters=2)
  export.export_encoder(model, str(tmp_path / 'encoder'), {})
  output = str(tmp_path / 'embedding.npz')
  embed.embed_file(str(tmp_path / 'encoder'), real_ct.path(), output)
  with np.load(output) as arrays:
    assert arrays['embeddings'].shape == (8 * 8 * 2, 32)
    assert np.isfinite(arrays['embeddings']).all()
    assert len(np.unique(arrays['embeddings'].round(5), axis=0)) > 100
