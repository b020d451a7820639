"""Descriptors by an exported autoencoder, against the Keras model."""

import os
import subprocess
import sys
from unittest import mock

from absl.testing import flagsaver
import apache_beam as beam
from apache_beam.options import pipeline_options
from apache_beam.testing import util
import numpy as np
import pytest

from beam_jobs import describe
from beam_jobs import descriptor_file
from beam_jobs import pipelines
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2.models import unet3d
from transvw_tf2.scans import thumbnail
from transvw_tf2.serving import encoders
from transvw_tf2.serving import export

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


@pytest.fixture(name='network', scope='module')
def _network():
  """A network of few levels: the size of its input cannot be chosen."""
  network = unet3d.UNet3D(base_filters=1, depth=2, skip_connections=False)
  network.build((None, 128, 128, 64, 1))
  return network


@pytest.fixture(name='model', scope='module')
def _model(network, tmp_path_factory):
  path = str(tmp_path_factory.mktemp('export') / 'model')
  export.export_thumbnail_encoder(network, path, {})
  return path


@pytest.fixture(name='scans', scope='module')
def _scans(tmp_path_factory):
  return tiny_scans.write_luna16(tmp_path_factory.mktemp('scans'))


@pytest.fixture(name='index', scope='module')
def _index(scans, tmp_path_factory):
  path = str(tmp_path_factory.mktemp('index') / 'index')
  done = _run('index_scans', scans=scans, output=path)
  assert done.returncode == 0, done.stderr
  return path


@pytest.fixture(name='job')
def _job(import_main):
  return import_main('beam_jobs.describe_scans')


def _run(job, *arguments, **named):
  options = [f'--{name}={value}' for name, value in named.items()]
  return subprocess.run(
    [sys.executable, '-m', f'beam_jobs.{job}', *options, *arguments],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=False,
  )


def _thumbnail(number):
  return thumbnail.make_thumbnail(tiny_scans.make_hu(number))


def _expected(network, number):
  """The mean of the bottleneck over all places, by hand."""
  scaled = (_thumbnail(number).astype(np.float32) + 1000) / 2000
  bottleneck, _ = network.encoder(scaled[np.newaxis, ..., np.newaxis])
  return np.asarray(bottleneck)[0].mean(axis=(0, 1, 2))


def test_the_job_describes_all_scans_of_an_index(
  job, network, model, index, tmp_path, capsys
):
  output = str(tmp_path / 'descriptors.npz')
  with flagsaver.flagsaver(data=index, descriptor_model=model, output=output):
    job.main(['describe_scans'])
  plan, line = capsys.readouterr().out.splitlines()
  assert plan.startswith(
    'plan: 6 thumbnails, 12.6 MB to read; 6 descriptors of'
  )
  assert line == f'descriptors of 6 scans: {output}'
  assert os.listdir(tmp_path) == ['descriptors.npz']
  ids = [f'1.2.840.{number:03d}' for number in range(6)]
  found = descriptor_file.read(output, ids)
  assert found.shape == (6, 4)
  for number in range(6):
    np.testing.assert_allclose(
      found[number], _expected(network, number), rtol=1e-5, atol=1e-6
    )
  assert len(np.unique(found.round(6), axis=0)) == 6


def test_no_bit_depends_on_the_size_of_a_batch(job, model, index, tmp_path):
  contents = set()
  for batch_size in (1, 3):
    path = tmp_path / f'{batch_size}.npz'
    job.run(index, model, str(path), batch_size=batch_size)
    contents.add(path.read_bytes())
  assert len(contents) == 1


@pytest.mark.long
def test_two_processes_write_the_same_file(job, model, index, tmp_path):
  job.run(index, model, str(tmp_path / 'one.npz'))
  done = _run(
    'describe_scans',
    '--runner=FnApiRunner',
    '--direct_num_workers=2',
    '--direct_running_mode=multi_processing',
    data=index,
    descriptor_model=model,
    output=tmp_path / 'two.npz',
  )
  assert done.returncode == 0, done.stderr
  one, two = (tmp_path / f'{name}.npz' for name in ('one', 'two'))
  assert one.read_bytes() == two.read_bytes()


def test_rows_of_pass_1_are_described_and_rejected_ones_kept(network, model):
  rows = [
    {'scan_id': '0', 'thumbnail': _thumbnail(0).tobytes(), 'size': [80]},
    {'scan_id': 'bad', 'thumbnail': b'', 'size': []},
    {'scan_id': '1', 'thumbnail': _thumbnail(1).tobytes(), 'size': [90]},
  ]

  def check(found):
    found = sorted(found, key=lambda row: row['scan_id'])
    assert [row['scan_id'] for row in found] == ['0', '1', 'bad']
    assert [row['size'] for row in found] == [[80], [90], []]
    assert {row['thumbnail'] for row in found} == {b''}
    for number in (0, 1):
      descriptor = np.frombuffer(found[number]['descriptor'], np.float32)
      np.testing.assert_allclose(
        descriptor, _expected(network, number), rtol=1e-5, atol=1e-6
      )
    assert found[2]['descriptor'] == b''

  with beam.Pipeline(runner='FnApiRunner') as pipeline:
    described = pipeline | beam.Create(rows) | describe.DescribeRows(model)
    util.assert_that(described, check)


def test_the_model_is_loaded_once_and_called_with_batches(model):
  # Two workers, each with its own copy of the transform.
  options = pipeline_options.PipelineOptions(
    ['--direct_num_workers=2', '--direct_running_mode=multi_threading']
  )
  with mock.patch.object(encoders, 'load', side_effect=encoders.load) as load:
    counters = pipelines.run(
      beam.Create(range(9))
      | beam.Map(lambda number: (number, _thumbnail(number % 3)))
      | describe.DescribeThumbnails(model, batch_size=4),
      options=options,
    )
  assert load.call_count == 1
  assert counters['scans_described'] == 9


def test_batches_are_as_large_as_wanted(model):
  handler = describe.EncoderHandler(model, batch_size=3)
  assert handler.batch_elements_kwargs() == {
    'min_batch_size': 3,
    'max_batch_size': 3,
  }
  loaded = handler.load_model()
  found = handler.run_inference([_thumbnail(0), _thumbnail(1)], loaded)
  assert [one.shape for one in found] == [(4,), (4,)]
  assert handler.get_num_bytes([_thumbnail(0)]) == 2 * 128 * 128 * 64


def test_a_model_of_another_input_is_one_line(network, job, index, tmp_path):
  small = str(tmp_path / 'small')
  export.export_thumbnail_encoder(
    unet3d.UNet3D(base_filters=1, depth=2), small, {}, thumbnail_shape=(8, 8, 4)
  )
  cubes = str(tmp_path / 'cubes')
  export.export_encoder(network, cubes, {})
  for model, text in (
    (small, 'takes thumbnails of 8 x 8 x 4 voxels, wanted 128 x 128 x 64'),
    (cubes, "wanted 'embed_thumbnails_int16'"),
    (str(tmp_path), 'is not a SavedModel'),
    (str(tmp_path / 'gone'), 'is not a folder'),
  ):
    with pytest.raises(errors.UserError, match=text):
      describe.check_model(model)
    with pytest.raises(errors.UserError, match=text):
      job.run(index, model, str(tmp_path / 'out.npz'))
  assert sorted(os.listdir(tmp_path)) == ['cubes', 'small']


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (np.inf, 'NaN or infinite numbers for 6 of 6 scans'),
    # oneDNN's ReLU, where it is part of a convolution, makes NaN 0.
    (np.nan, 'NaN or infinite|describes all 6 scans alike'),
    (-1e9, 'describes all 6 scans alike'),
  ],
)
def test_a_broken_model_is_one_line(job, index, tmp_path, value, text):
  broken = unet3d.UNet3D(base_filters=1, depth=2)
  broken.build((None, 128, 128, 64, 1))
  beta = broken.encoder.conv_blocks[-1].batch_norm.beta
  beta.assign(np.full(beta.shape, value))
  model = str(tmp_path / 'model')
  export.export_thumbnail_encoder(broken, model, {})
  with pytest.raises(errors.UserError, match=text):
    job.run(index, model, str(tmp_path / 'out.npz'))
  assert os.listdir(tmp_path) == ['model']


def test_an_output_that_exists_is_kept(job, model, index, tmp_path):
  path = tmp_path / 'descriptors.npz'
  path.write_text('mine')
  with pytest.raises(errors.UserError, match=r'exists; give another file'):
    job.run(index, model, str(path))
  assert path.read_text() == 'mine'


def test_a_data_set_without_thumbnails_is_one_line(job, model, tmp_path):
  with pytest.raises(
    errors.UserError, match=r'`python -m beam_jobs\.index_scans`'
  ):
    job.run(str(tmp_path), model, str(tmp_path / 'out.npz'))
  assert os.listdir(tmp_path) == []
