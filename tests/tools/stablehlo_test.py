"""Exported programs give with JAX what TensorFlow gives."""

import ast
import importlib.util
import json
import os
import subprocess
import sys

from absl.testing import flagsaver
import keras
import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.perturb import perturb

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_SCRIPT = os.path.join(_ROOT, 'tools', 'run_stablehlo.py')
_NETWORKS = os.path.join(_ROOT, 'tools', 'benchmarks', 'torch_networks.py')
_FLAGS = {
  'size': ['16', '16', '8'],
  'words': 3,
  'base_filters': 1,
  'head_filters': 2,
  'head_units': 3,
}


@pytest.fixture
def export_step(import_main, tmp_path):
  module = import_main('tools.benchmark').load('export_step')
  with flagsaver.flagsaver(**_FLAGS, output=os.fspath(tmp_path), batches=['2']):
    yield module


@pytest.fixture
def run_stablehlo():
  spec = importlib.util.spec_from_file_location('run_stablehlo', _SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _write(module, name, function, arguments, results, folder):
  """Writes one program as the benchmark does; returns its description."""
  with flagsaver.flagsaver(output=os.fspath(folder)):
    module._export(name, function, arguments, results, batch=2)
  with open(folder / f'{name}.json', encoding='utf-8') as file:
    return json.load(file)


def _run_with_jax(module, folder, program, arguments):
  jax = pytest.importorskip('jax')
  run = module.load_program(os.fspath(folder), program)
  return [np.asarray(one) for one in run([*map(jax.device_put, arguments)])]


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_the_embedding_equals_tensorflow(
  export_step, run_stablehlo, tmp_path, precision
):
  network = export_step._make_network(precision, fused=True)
  function, arguments, results = export_step.make_embedding(
    network, (2, 16, 16, 8, 1)
  )
  program = _write(export_step, 'embed', function, arguments, results, tmp_path)
  values = run_stablehlo.make_arguments(program)
  hu = values[-1]
  assert hu.min() < -990 and hu.max() > 990
  (got,) = _run_with_jax(run_stablehlo, tmp_path, program, values)
  for variable, value in zip(
    network.encoder.variables, values[:-1], strict=True
  ):
    variable.assign(value)
  want = network.embed((hu + 1000) / 2000)
  assert got.shape == (2, 16) and np.max(want) > 0.05
  atol = 1e-6 if precision == 'float32' else 0.003
  np.testing.assert_allclose(got, want, atol=atol)


def _seeds_without_painting():
  """Seeds that shuffle one cube and map the intensity of the other.

  Painted parts are constant, and of equal values pooling may take either, which
  makes for other gradients.
  """
  seeds = np.array([(0, number) for number in range(100)], np.int32)
  choices = perturb.draw_choice(tf.constant(seeds), (0.25,) * 4).numpy()
  kinds = (perturb.SHUFFLE, perturb.INTENSITY)
  return seeds[[choices.tolist().index(kind) for kind in kinds]]


def _distinct_arguments(program):
  """Arguments of a step in the midst of training."""
  rng = np.random.default_rng(1)
  arguments = []
  for one in program['arguments']:
    shape, name = one['shape'], one['name']
    if name.startswith('mean/'):
      value = rng.normal(size=shape) / 1000
    elif name.startswith('square/'):
      value = rng.uniform(0.5, 1.5, shape) / 1e6
    elif name == 'count':
      value = np.array(9)
    elif name.endswith(('beta', 'bias')):
      value = rng.uniform(-0.3, 0.3, shape)
    elif one['fill'] == 'ones':
      value = rng.uniform(0.5, 1.5, shape)
    else:
      value = _value(one, rng)
    arguments.append(np.asarray(value).astype(one['dtype']))
  return arguments


def _value(argument, rng):
  shape = argument['shape']
  if argument['name'] == 'seeds':
    return _seeds_without_painting()
  if argument['name'] == 'words':
    return rng.integers(*argument['range'], size=shape)
  if argument['name'] == 'cubes':
    return rng.random(shape)
  return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1], initial=1))


@pytest.mark.long
def test_the_step_equals_tensorflow(export_step, run_stablehlo, tmp_path):
  network = export_step._make_network('float32', fused=True)
  function, arguments, results = export_step.make_training_step(
    network, (2, 16, 16, 8, 1)
  )
  program = _write(export_step, 'train', function, arguments, results, tmp_path)
  values = _distinct_arguments(program)
  got = _run_with_jax(run_stablehlo, tmp_path, program, values)
  # The network and Keras' optimizer, with variables.
  cubes, words, seeds = values[-3:]
  by_name = {
    one['name']: value
    for one, value in zip(program['arguments'], values, strict=True)
  }
  for variable in network.variables:
    variable.assign(by_name[variable.path])
  optimizer = keras.optimizers.Adam(1e-3)
  optimizer.build(network.trainable_variables)
  count = len(network.trainable_variables)
  state = optimizer.variables
  assert [one.path.rpartition('/')[2] for one in state[:2]] == [
    'iteration',
    'learning_rate',
  ]
  state[0].assign(9)
  for number in range(count):
    state[2 + 2 * number].assign(values[count + number])
    state[3 + 2 * number].assign(values[2 * count + number])
  inputs = perturb.Perturb()(cubes, seeds)
  with tf.GradientTape() as tape:
    outputs = network(inputs, training=True)
    named = tf.gather(outputs['words'], words, batch_dims=1)
    loss = tf.reduce_mean(tf.square(outputs['restored'] - cubes)) - (
      0.01 * tf.reduce_mean(tf.math.log(named))
    )
  gradients = tape.gradient(
    loss, [one.value for one in network.trainable_variables]
  )
  optimizer.apply_gradients(
    zip(gradients, network.trainable_variables, strict=True)
  )
  want = {
    'loss': loss,
    'count': 10,
    **{one.path: one.numpy() for one in network.variables},
  }
  for number, variable in enumerate(network.trainable_variables):
    want[f'mean/{variable.path}'] = state[2 + 2 * number].numpy()
    want[f'square/{variable.path}'] = state[3 + 2 * number].numpy()
  assert len(got) == len(want) == len(results)
  for one, value in zip(results, got, strict=True):
    # A step moves weights by about 1e-3.
    atol = 1e-9 if one['name'].startswith('square/') else 1e-5
    np.testing.assert_allclose(
      value, want[one['name']], rtol=1e-3, atol=atol, err_msg=one['name']
    )
    assert list(value.shape) == one['shape'] and value.dtype == one['dtype']


def test_a_step_goes_on_from_its_results(
  export_step, run_stablehlo, tmp_path, monkeypatch
):
  jax = pytest.importorskip('jax')

  def function(total, other, cubes):
    return [tf.reduce_sum(cubes), total + other, other * 2]

  arguments = [
    export_step._describe('total', (3,), 'float32', 'zeros'),
    export_step._describe('other', (3,), 'float32', 'ones'),
    export_step._describe('cubes', (2, 4), 'float32', 'cubes', range=[2, 3]),
  ]
  results = [
    export_step._describe('loss', (), 'float32'),
    export_step._describe('total', (3,), 'float32', argument=0),
    export_step._describe('other', (3,), 'float32', argument=1),
  ]
  program = _write(export_step, 'sums', function, arguments, results, tmp_path)
  taken = []
  load = run_stablehlo.load_program

  def load_and_log(folder, program):
    run = load(folder, program)

    def log_and_run(values):
      taken.append([np.array(value) for value in values])
      return run(values)

    return log_and_run

  monkeypatch.setattr(run_stablehlo, 'load_program', load_and_log)
  measured = run_stablehlo._time_program(os.fspath(tmp_path), program, 4)
  assert measured['seconds'] > 0 and measured['memory'] > 0
  assert 16 < measured['value'] < 24 and jax.devices()
  for step, (total, other, cubes) in enumerate(taken):
    np.testing.assert_array_equal(total, 3 * [2**step - 1])
    np.testing.assert_array_equal(other, 3 * [2**step])
    np.testing.assert_array_equal(cubes, taken[0][2])
  assert len(taken) == 3 + 4


def test_a_program_that_takes_other_arguments_is_refused(export_step):
  hidden = tf.constant(np.arange(5, dtype=np.float32))
  argument = export_step._describe('x', (5,), 'float32', 'ones')
  with pytest.raises(RuntimeError, match='takes 2 arguments, wanted 1'):
    export_step.lower(lambda x: [x + hidden], [argument])


def test_what_is_written(export_step, tmp_path):
  argument = export_step._describe('x', (2, 5), 'float32', 'ones')
  result = export_step._describe('y', (2, 5), 'float32', argument=0)
  line = export_step._export(
    'double', lambda x: [2 * x], [argument], [result], batch=2
  )
  text = (tmp_path / 'double.stablehlo').read_text()
  assert 'stablehlo.multiply' in text and 'loc' not in text
  assert line == ('export_double', len(text) / 1e3, 'kB', None, None)
  written = json.loads((tmp_path / 'double.json').read_text())
  assert written == {
    'name': 'double',
    'batch': 2,
    'network': {
      'num_words': 3,
      'base_filters': 1,
      'head_filters': 2,
      'head_units': 3,
    },
    'size': [16, 16, 8],
    'arguments': [
      {'name': 'x', 'shape': [2, 5], 'dtype': 'float32', 'fill': 'ones'}
    ],
    'results': [
      {'name': 'y', 'shape': [2, 5], 'dtype': 'float32', 'argument': 0}
    ],
  }
  assert sorted(os.listdir(tmp_path)) == ['double.json', 'double.stablehlo']


def test_export_needs_a_folder(export_step, tmp_path):
  with (
    flagsaver.flagsaver(output=None),
    pytest.raises(errors.UserError, match='export_step needs --output'),
  ):
    next(export_step.export_step())
  taken = tmp_path / 'taken'
  taken.write_text('')
  with pytest.raises(errors.UserError, match='cannot be written'):
    export_step._write(os.fspath(taken / 'x.json'), '')


def _programs(folder):
  """Writes descriptions of programs that nobody runs."""
  for name, more in (
    ('train_bfloat16_fused_2', {'plain_flops_per_cube': 3e12}),
    ('embed_bfloat16_2', {}),
  ):
    described = {'name': name, 'precision': 'bfloat16', 'batch': 2, **more}
    text = json.dumps(described | {'flops_per_cube': 2e12})
    (folder / f'{name}.json').write_text(text)


def test_lines_and_ratios(run_stablehlo, tmp_path, monkeypatch, capsys):
  _programs(tmp_path)
  measured = {
    'train_bfloat16_fused_2': (0.5, 1e9),
    'train_bfloat16_fused_2:': (2.0, 4e9),
    'train_bfloat16_fused_2:_compiled': (1.0, 3e9),
    'embed_bfloat16_2': (0.1, 1e9),
  }

  def measure(worker, arguments):
    assert arguments.repeats == 7
    seconds, memory = measured[worker]
    return {'seconds': seconds, 'memory': memory}

  monkeypatch.setattr(run_stablehlo, '_measure', measure)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  done = run_stablehlo.main(
    [os.fspath(tmp_path), '--repeats=7', '--peak_tflops', '50', '100']
  )
  assert done == 0
  assert capsys.readouterr().out.splitlines() == [
    'pytorch_bfloat16_2, 1, cubes/s, -, -',
    'pytorch_bfloat16_2_share, 3, % of peak, -, -',
    'pytorch_bfloat16_2_memory, 4, GB, -, -',
    'pytorch_compiled_bfloat16_2, 2, cubes/s, -, -',
    'pytorch_compiled_bfloat16_2_share, 6, % of peak, -, -',
    'pytorch_compiled_bfloat16_2_memory, 3, GB, -, -',
    'embed_bfloat16_2, 20, cubes/s, -, -',
    'embed_bfloat16_2_share, 40, % of peak, -, -',
    'embed_bfloat16_2_memory, 1, GB, -, -',
    # Against the faster form of PyTorch.
    'train_bfloat16_fused_2, 4, cubes/s, 2, pytorch_bfloat16_2',
    'train_bfloat16_fused_2_share, 8, % of peak, -, -',
    'train_bfloat16_fused_2_memory, 1, GB, 0.333, pytorch_bfloat16_2',
  ]


def test_lines_without_pytorch(run_stablehlo, tmp_path, monkeypatch, capsys):
  _programs(tmp_path)
  monkeypatch.setattr(
    run_stablehlo, '_measure', lambda *_: {'seconds': 0.5, 'memory': 1e9}
  )
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert run_stablehlo.main([os.fspath(tmp_path), '--only=train']) == 0
  captured = capsys.readouterr()
  assert captured.out.splitlines() == [
    'train_bfloat16_fused_2, 4, cubes/s, -, -',
    'train_bfloat16_fused_2_memory, 1, GB, -, -',
  ]
  assert 'no PyTorch' in captured.err


def test_a_folder_without_programs(run_stablehlo, tmp_path, capsys):
  assert run_stablehlo.main([os.fspath(tmp_path)]) == 1
  assert capsys.readouterr().err.startswith('error: no *.json in ')


def test_a_program_that_fails_is_left_out(run_stablehlo, tmp_path, capsys):
  pytest.importorskip('jax')
  (tmp_path / 'broken.stablehlo').write_text('module {')
  described = {'name': 'broken', 'precision': 'float32', 'batch': 2}
  described |= {'flops_per_cube': 1, 'arguments': [], 'results': []}
  (tmp_path / 'broken.json').write_text(json.dumps(described))
  assert run_stablehlo.main([os.fspath(tmp_path)]) == 0
  captured = capsys.readouterr()
  assert not captured.out
  assert 'broken is left out: ' in captured.err
  assert captured.err.count('\n') == 1


@pytest.mark.parametrize('path', [_SCRIPT, _NETWORKS])
def test_neither_tensorflow_nor_this_package_is_needed(path):
  with open(path, encoding='utf-8') as file:
    tree = ast.parse(file.read())
  imported = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      imported |= {one.name.partition('.')[0] for one in node.names}
    elif isinstance(node, ast.ImportFrom):
      imported.add(node.module.partition('.')[0])
  others = imported - set(sys.stdlib_module_names)
  assert others and others <= {'jax', 'numpy', 'torch'}


@pytest.mark.long
def test_the_commands(tmp_path):
  pytest.importorskip('jax')
  pytest.importorskip('torch')
  sizes = ('--size=8,8,8', '--base_filters=1', '--head_filters=2')
  folder = os.fspath(tmp_path / 'programs')
  rows = []
  for command in (
    ['tools/benchmark.py', 'export_step', f'--output={folder}', *sizes]
    + ['--head_units=2', '--batches=2'],
    [_SCRIPT, folder, '--repeats=2', '--only=bfloat16'],
  ):
    done = subprocess.run(
      [sys.executable, *command],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    rows.append([line.split(', ') for line in done.stdout.splitlines()])
  exported, timed = rows
  assert len(exported) == 6
  assert all(10 < float(row[1]) < 2000 for row in exported)
  names = {row[0] for row in timed}
  assert {f'train_bfloat16_{form}_2' for form in ('fused', 'plain')} < names
  assert {'embed_bfloat16_2', 'pytorch_bfloat16_2'} < names, done.stderr
  steps = [row for row in timed if row[0].startswith('train')]
  assert len(steps) == 2 * 2
  assert all(row[4].startswith('pytorch_') for row in steps)
