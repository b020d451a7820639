"""Conversion from format to format: exact, reported, whole or nothing."""

import csv
import os
import resource
import subprocess
import sys

from absl.testing import flagsaver
import h5py
import keras
import numpy as np
import pytest

from tests.convert import published_files
from tests.training import tiny_data
from transvw_tf2 import convert
from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2.convert import files
from transvw_tf2.models import blocks
from transvw_tf2.models import torch_variant
from transvw_tf2.training import checkpoints
from transvw_tf2.training import initial_weights

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def _write(path, kind):
  layers = published_files.draw(kind)
  if kind.startswith('torch'):
    pytest.importorskip('torch')
    published_files.write_pt(path, layers)
  else:
    published_files.write_h5(path, layers)
  return layers


def _weights(model):
  return {
    name: layer.get_weights()
    for name, layer in blocks.weight_layers(model).items()
  }


def _assert_same(got, want):
  assert set(got) == set(want)
  for name, arrays in want.items():
    for one, other in zip(got[name], arrays, strict=True):
      np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize('kind', ['y_net', 'v_net', 'genesis', 'encoder'])
def test_keras_out_and_in_is_exact(kind, tmp_path):
  official, ours, back = (
    str(tmp_path / name) for name in ('a.h5', 'b.keras', 'c.h5')
  )
  want = _write(official, kind)
  files.convert(official, ours)
  files.convert(ours, back)
  # Layers that Keras had named have the names of TransVW afterwards.
  names = {'conv3d_15': 'final_conv', 'dense_1': 'cls_output'}
  want = {names.get(name, name): arrays for name, arrays in want.items()}
  _assert_same(_weights(keras.saving.load_model(ours)), want)
  _assert_same(published_files.read_h5(back), want)


@pytest.mark.parametrize('kind', ['torch', 'torch_u_net', 'torch_words'])
def test_pytorch_out_and_in_is_exact(kind, tmp_path):
  torch = pytest.importorskip('torch')
  official, ours, back = (
    str(tmp_path / name) for name in ('a.pt', 'b.keras', 'c.pt')
  )
  want = _write(official, kind)
  files.convert(official, ours)
  files.convert(ours, back)
  _assert_same(_weights(keras.saving.load_model(ours)), want)
  state = torch.load(back, weights_only=True)['state_dict']
  wanted = published_files.torch_state(want)
  assert set(state) == set(wanted)
  for key, value in wanted.items():
    if not key.endswith('num_batches_tracked'):
      assert state[key].is_contiguous()
      assert torch.equal(state[key], value), key
  with open(back, 'rb') as file:
    assert file.read(2) != b'PK'  # old versions of PyTorch read it too


def _functional(kind, transposed=False):
  """Returns a Y-Net, U-Net or classifier as Keras users write it."""
  layers = keras.layers

  def block(number, features, filters):
    name = f'depth_{number}'
    features = layers.Conv3D(filters, 3, padding='same', name=f'{name}_conv')(
      features
    )
    features = layers.BatchNormalization(name=f'{name}_bn')(features)
    return layers.ReLU(name=f'{name}_relu')(features)

  features = inputs = keras.Input((16, 16, 8, 1))
  skips = []
  for level in range(4):
    if level:
      skips.append(features)
      features = layers.MaxPooling3D(2)(features)
    features = block(2 * level, features, 2 * 2**level)
    bottleneck = features = block(2 * level + 1, features, 4 * 2**level)
  outputs = []
  if kind != 'encoder':
    for number in (8, 10, 12):
      if transposed:
        up = layers.Conv3DTranspose(features.shape[-1], 2, strides=2)(features)
      else:
        up = layers.UpSampling3D(2)(features)
      skip = skips.pop()
      features = layers.Concatenate()([up, skip])
      features = block(number, features, skip.shape[-1])
      features = block(number + 1, features, skip.shape[-1])
    features = layers.Conv3D(1, 1, name='final_conv')(features)
    outputs.append(
      layers.Activation('sigmoid', name='reconst_output')(features)
    )
  if kind == 'y_net':
    features = block(14, bottleneck, published_files.HEAD_FILTERS)
    features = layers.GlobalAveragePooling3D()(features)
    units = published_files.HEAD_UNITS
    features = layers.Dense(units, 'relu', name='cls_fc')(features)
  elif kind == 'encoder':
    features = layers.GlobalAveragePooling3D()(bottleneck)
  if kind != 'u_net':
    words = published_files.WORDS
    features = layers.Dense(words, 'softmax', name='cls_output')(features)
    outputs.append(features)
  return keras.Model(inputs, outputs)


@pytest.mark.parametrize('by_name', [False, True])
@pytest.mark.parametrize('kind', ['y_net', 'u_net', 'encoder'])
def test_keras_reads_our_h5_by_order_and_by_name(kind, by_name, tmp_path):
  official, back = str(tmp_path / 'a.h5'), str(tmp_path / 'b.h5')
  _write(official, kind)
  files.convert(official, back)
  network = _functional(kind)
  network.load_weights(back, by_name=by_name)
  cubes = np.random.default_rng(1).random((2, 16, 16, 8, 1), np.float32)
  outputs = network(cubes)
  outputs = outputs if isinstance(outputs, list) else [outputs]
  want = convert.load(official)(cubes)
  names = [name for name in ('restored', 'words') if name in want]
  for name, value in zip(names, outputs, strict=True):
    np.testing.assert_allclose(value, want[name], rtol=1e-4, atol=1e-6)


def test_a_transposed_decoder_that_keras_named(tmp_path):
  """As Keras itself writes it: whole, layers with made-up names."""
  network = _functional('u_net', transposed=True)
  rng = np.random.default_rng(0)
  for weight in network.weights:
    weight.assign(rng.uniform(0.1, 0.5, weight.shape))
  path, back = str(tmp_path / 'whole.h5'), str(tmp_path / 'back.h5')
  network.save(path)
  cubes = rng.random((2, 16, 16, 8, 1), np.float32)
  want = network(cubes)
  np.testing.assert_allclose(
    convert.load(path)(cubes)['restored'], want, rtol=1e-4
  )
  files.convert(path, back)
  _functional('u_net', transposed=True).load_weights(back)
  network.load_weights(back)
  np.testing.assert_array_equal(network(cubes), want)


@pytest.mark.parametrize(
  ('kind', 'task'),
  [('y_net', 'y_net'), ('encoder', 'y_net'), ('torch', 'torch')],
)
def test_training_starts_from_what_was_converted(kind, task, tmp_path):
  official, path = str(tmp_path / 'official'), str(tmp_path / 'ours.keras')
  layers = _write(official, kind)
  files.convert(official, path)
  sizes = {'num_words': published_files.WORDS, 'base_filters': 2}
  if task == 'torch':
    model = models.build_torch_visual_word_net(
      **sizes, head_filters=published_files.TORCH_HEAD_FILTERS
    )
  else:
    model = models.build_visual_word_net(
      **sizes,
      head_filters=published_files.HEAD_FILTERS,
      head_units=published_files.HEAD_UNITS,
    )
  model.build((None, 16, 16, 8, 1))
  line = initial_weights.start_from(model, path)
  assert ('new: ' in line) == (kind == 'encoder')
  got = _weights(model)
  copied = set(layers) & set(got) if kind == 'encoder' else set(got)
  assert len(copied) >= 16
  for name in copied:
    for one, other in zip(got[name], layers[name], strict=True):
      np.testing.assert_array_equal(one, other)


def test_the_folder_of_a_run_becomes_an_official_file(tmp_path):
  workdir, path = str(tmp_path / 'run'), str(tmp_path / 'ours.h5')
  os.mkdir(workdir)
  model = models.build_visual_word_net(
    num_words=3, base_filters=2, depth=3, head_filters=4, head_units=5
  )
  model.build((None, *tiny_data.CUBE_SHAPE, 1))
  checkpoints.write_description(
    workdir,
    {
      'model': keras.saving.serialize_keras_object(model),
      'shape': tiny_data.CUBE_SHAPE,
    },
  )
  checkpoints.Checkpoints(
    workdir, model=model, progress=checkpoints.Progress()
  ).save_best(1)
  conversion = files.convert(workdir, path)
  assert len(conversion.rows) == len(model.weights)
  _assert_same(published_files.read_h5(path), _weights(model))
  _assert_same(_weights(convert.load(workdir)), _weights(model))


@pytest.mark.parametrize(('epsilon', 'units'), [(1e-5, None), (1e-3, 5)])
def test_statistics_of_batches_are_kept(epsilon, units, tmp_path):
  source, path = str(tmp_path / 'a.keras'), str(tmp_path / 'b.keras')
  model = torch_variant.TorchVisualWordNet(
    **{'num_words': 3, 'base_filters': 2, 'depth': 2, 'head_filters': 4},
    head_units=units,
    epsilon=epsilon,
    batch_statistics=True,
  )
  model.build((None, None, None, None, 1))
  model.save(source)
  files.convert(source, path)
  cubes = np.random.default_rng(0).random((2, 8, 8, 8, 1), np.float32)
  got, want = convert.load(path)(cubes), model(cubes)
  assert set(got) == set(want)
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


def test_statistics_of_batches_that_a_format_cannot_say(tmp_path):
  source, path = str(tmp_path / 'a.keras'), str(tmp_path / 'b.h5')
  model = torch_variant.TorchVisualWordNet(
    None, 2, 2, epsilon=1e-3, batch_statistics=True
  )
  model.build((None, None, None, None, 1))
  model.save(source)
  notes = files.convert(source, path).notes
  assert '(batch_statistics) is left out' in notes[-1]


def test_the_report_has_every_tensor_of_the_file(tmp_path):
  official = str(tmp_path / 'official.h5')
  layers = _write(official, 'genesis')
  rows = files.convert(official, str(tmp_path / 'ours.keras')).rows
  loaded = {row.source: row for row in rows if row.state == 'loaded'}
  assert len(loaded) == sum(map(len, layers.values()))
  final = loaded['conv3d_15/conv3d_15/kernel:0']
  assert (final.target, final.shape) == ('final_conv/kernel', (1, 1, 1, 4, 1))
  left = {row.source: row for row in rows if row.state == 'left out'}
  assert set(left) == {
    '/optimizer_weights/Adam/iterations:0',
    '/optimizer_weights/training/Adam/Variable:0',
  }
  assert {row.why for row in left.values()} == {'state of the optimizer'}


def test_the_report_of_pytorch_says_what_differs(tmp_path):
  pytest.importorskip('torch')
  official = str(tmp_path / 'official.pt')
  layers = published_files.draw('torch')
  more = ('projection_head.0.weight', 'prototypes.weight')
  published_files.write_pt(official, layers, 'module.', more)
  conversion = files.convert(official, str(tmp_path / 'ours.keras'))
  rows = {row.source: row for row in conversion.rows}
  up = rows['module.up_tr256.up_conv.weight']
  assert (up.target, up.state) == ('depth_8_up/kernel', 'loaded')
  for name in (
    *(f'module.{one}' for one in more),
    'module.clc_out.bn1.num_batches_tracked',
    'optimizer_state_dict.state.0.exp_avg',
  ):
    assert (rows[name].state, rows[name].target) == ('left out', '')
  assert any('batch_statistics=True' in note for note in conversion.notes)
  loaded = [row for row in conversion.rows if row.state == 'loaded']
  assert len(loaded) == sum(map(len, layers.values()))


@pytest.mark.parametrize(
  ('kind', 'output', 'line'),
  [
    ('y_net', 'a.pt', 'this is that of Keras: write .keras or .h5'),
    ('torch', 'a.h5', 'write .keras or .pt'),
    ('y_net', 'a.txt', 'give --format'),
    ('y_net', 'no/folder/a.keras', 'wanted a file in a folder that exists'),
    ('y_net', 'official', 'give another name'),
  ],
)
def test_outputs_that_cannot_be(kind, output, line, tmp_path):
  pytest.importorskip('torch')
  official = str(tmp_path / 'official')
  _write(official, kind)
  before = (tmp_path / 'official').read_bytes()
  kwargs = {'output_format': 'h5'} if output == 'official' else {}
  with pytest.raises(errors.UserError, match=line):
    files.convert(official, str(tmp_path / output), **kwargs)
  assert os.listdir(tmp_path) == ['official']
  assert (tmp_path / 'official').read_bytes() == before


def test_a_format_has_to_fit_the_name(tmp_path):
  official = str(tmp_path / 'official.h5')
  _write(official, 'encoder')
  with pytest.raises(errors.UserError, match=r'and no other, ends in \.keras'):
    files.convert(official, str(tmp_path / 'a'), 'keras')
  with pytest.raises(errors.UserError, match=r'and no other, ends in \.keras'):
    files.convert(official, str(tmp_path / 'a.keras'), 'h5')
  files.convert(official, str(tmp_path / 'b'), 'h5')
  assert h5py.is_hdf5(tmp_path / 'b')


@pytest.mark.parametrize('output', ['ours.h5', 'ours.pt', 'ours.keras'])
def test_a_full_disk_leaves_the_old_file(output, tmp_path):
  official, path = str(tmp_path / 'official'), tmp_path / output
  _write(official, 'torch' if output == 'ours.pt' else 'encoder')
  path.write_text('old')
  # Of what a file may have, at most; Python ignores the signal.
  limit = (10_000, 10_000)
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'transvw_tf2.convert'),
      *('--input', official, '--output', str(path)),
    ],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    check=False,
  )
  assert done.returncode == 1
  line = done.stderr.splitlines()[-1]
  assert line.startswith(f'error: {path} cannot be written')
  assert 'File too large' in line
  assert 'Traceback' not in done.stderr
  assert path.read_text() == 'old'
  assert sorted(os.listdir(tmp_path)) == ['official', output]


def test_the_command(tmp_path, import_main, capsys):
  official, path = str(tmp_path / 'official.h5'), str(tmp_path / 'ours.keras')
  layers = _write(official, 'y_net')
  rows = str(tmp_path / 'rows.csv')
  main = import_main('transvw_tf2.convert.__main__')
  with flagsaver.flagsaver(input=official, output=path, report=rows):
    assert main.main(['convert']) is None
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].split() == ['from', 'to', 'shape', 'state', 'why']
  count = sum(map(len, layers.values()))
  assert lines[-1] == f'wrote {path}: {count} tensors, 2 left out'
  assert 'num_words 3' in lines[-2]
  with open(rows, encoding='utf-8') as file:
    table = list(csv.DictReader(file))
  assert len(table) == count + 2 == len(lines) - 3
  assert table[0]['to'] == 'depth_0_conv/kernel'
  assert table[0]['shape'] == '3x3x3x1x2'


@pytest.mark.parametrize(
  ('name', 'line'),
  [
    ('official.h5', 'is the --input: give another name'),
    ('link.h5', 'is the --input: give another name'),
    ('./ours.keras', 'is the --output: give another name'),
    ('no/rows.csv', 'wanted a file in a folder that exists'),
    ('', 'wanted a file in a folder that exists'),
  ],
)
def test_a_report_that_cannot_be(name, line, tmp_path, import_main):
  official, path = str(tmp_path / 'official.h5'), str(tmp_path / 'ours.keras')
  _write(official, 'encoder')
  os.symlink(official, tmp_path / 'link.h5')
  before = (tmp_path / 'official.h5').read_bytes()
  main = import_main('transvw_tf2.convert.__main__')
  rows = os.path.join(tmp_path, name)
  with (
    flagsaver.flagsaver(input=official, output=path, report=rows),
    pytest.raises(errors.UserError, match=line),
  ):
    main.main(['convert'])
  assert sorted(os.listdir(tmp_path)) == ['link.h5', 'official.h5']
  assert (tmp_path / 'official.h5').read_bytes() == before


def test_the_command_ends_with_one_line_for_bad_input(tmp_path):
  path = tmp_path / 'official.h5'
  path.write_text('no weights')
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'transvw_tf2.convert'),
      *('--input', str(path), '--output', str(tmp_path / 'a.keras')),
    ],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=False,
  )
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith(f'error: {path} is neither')
  assert 'Traceback' not in done.stderr
  assert os.listdir(tmp_path) == ['official.h5']


def test_a_classifier_stays_one(tmp_path):
  """It would be taken for the stage that names words, by its layers."""
  source, path = str(tmp_path / 'a.keras'), str(tmp_path / 'b.keras')
  model = models.build_classifier(num_classes=2, base_filters=2, depth=2)
  model.build((None, None, None, None, 1))
  model.save(source)
  rows = files.convert(source, path).rows
  assert {row.state for row in rows} == {'loaded'}
  cubes = np.random.default_rng(0).random((2, 8, 8, 8, 1), np.float32)
  found, want = convert.load(path)(cubes), model(cubes)
  assert set(found) == {'probabilities', 'embedding'}
  for name, value in found.items():
    np.testing.assert_array_equal(value, want[name])
