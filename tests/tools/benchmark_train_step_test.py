"""The benchmark of a training step, and the PyTorch network it holds up."""

import importlib.util
import os
import subprocess
import sys

from absl.testing import flagsaver
import keras
import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.models import blocks

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_SIZES = {'base_filters': 2, 'head_filters': 6, 'head_units': 7}
_NETWORK = {'num_words': 5, **_SIZES}
_SETTINGS = {'network': _NETWORK, 'batch': 3, 'size': [16, 8, 16]}
_FLAGS = {'words': 5, 'batch': 3, 'size': ['16', '8', '16'], **_SIZES}


@pytest.fixture
def train_step(import_main):
  module = import_main('tools.benchmark').load('train_step')
  with flagsaver.flagsaver(**_FLAGS):
    yield module


@pytest.fixture
def torch_networks():
  torch = pytest.importorskip('torch')
  # Threads that wait for each other take long on a busy machine.
  torch.set_num_threads(1)
  path = os.path.join(_ROOT, 'tools', 'benchmarks', 'torch_networks.py')
  spec = importlib.util.spec_from_file_location('torch_networks', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _make_torch(torch_networks, **settings):
  network = torch_networks.VisualWordNet(**_NETWORK)
  return network, torch_networks.TrainStep(network, **settings)


def _batch(seed=0):
  rng = np.random.default_rng(seed)
  shape = (3, 16, 8, 16, 1)
  inputs, cubes = (rng.random(shape, np.float32) for _ in range(2))
  return inputs, cubes, rng.integers(5, size=3).astype(np.int32)


def _weights(model, seed=0):
  """Sets random weights and returns them by the name of the layer."""
  rng = np.random.default_rng(seed)
  layers = blocks.weight_layers(model)
  for name, layer in layers.items():
    if name.endswith('_bn'):
      layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
      layer.beta.assign(rng.uniform(-0.5, 0.5, layer.beta.shape))
    else:
      limit = np.sqrt(6 / np.prod(layer.kernel.shape[:-1]))
      layer.kernel.assign(rng.uniform(-limit, limit, layer.kernel.shape))
      layer.bias.assign(rng.uniform(-0.5, 0.5, layer.bias.shape))
  return {name: layer.get_weights() for name, layer in layers.items()}


def _margin(network, inputs) -> float:
  """Returns how near to 0 the values come that ReLU gets, at the least.

  One that rounding carries over 0 changes gradients by far more than rounding.
  """
  margins = []
  hooks = [
    module.register_forward_hook(
      lambda _, __, output: margins.append(output.abs().min().item())
    )
    for module in network.modules()
    if type(module).__name__ == 'BatchNorm3d'
  ]
  network(inputs)
  for hook in hooks:
    hook.remove()
  assert len(margins) == 15
  return min(margins)


def _to_torch(batch):
  import torch

  inputs, cubes, words = (torch.as_tensor(one) for one in batch)
  return inputs.movedim(-1, 1), cubes.movedim(-1, 1), words.long()


@pytest.mark.parametrize('fused', [True, False])
def test_pytorch_has_the_same_outputs_and_gradients(
  train_step, torch_networks, fused
):
  model, _ = train_step.make_ours(
    _SETTINGS | {'precision': 'float32', 'fused': fused}
  )
  layers = blocks.weight_layers(model)
  for seed in range(50):
    # In float64, for ours to be held up against.
    network, step = _make_torch(torch_networks)
    network.double()
    torch_networks.load_weights(network, _weights(model, seed))
    batch = _batch(seed)
    torch_inputs, torch_cubes, torch_words = _to_torch(batch)
    torch_inputs, torch_cubes = torch_inputs.double(), torch_cubes.double()
    # Moves the statistics by a hundredth.
    if _margin(network, torch_inputs) > 2e-5:
      break
  else:
    pytest.fail('no seed keeps away from 0')
  inputs, cubes, words = batch
  variables = [variable.value for variable in model.trainable_variables]
  with tf.GradientTape() as tape:
    outputs = model(inputs, training=True)
    named = tf.gather(outputs['words'], words, batch_dims=1)
    loss = tf.reduce_mean(tf.square(outputs['restored'] - cubes)) - (
      0.01 * tf.reduce_mean(tf.math.log(named))
    )
  of_loss = tape.gradient(loss, variables)
  of_loss = dict(zip([id(one) for one in variables], of_loss, strict=True))
  network.eval()
  restored, logits = network(torch_inputs)
  outputs = model(inputs, training=False)
  np.testing.assert_allclose(
    outputs['restored'], restored.detach().movedim(1, -1), atol=1e-4
  )
  np.testing.assert_allclose(
    outputs['words'], logits.softmax(-1).detach(), atol=1e-4
  )
  network.train()
  torch_loss = step.loss(torch_inputs, torch_cubes, torch_words)
  torch_loss.backward()
  np.testing.assert_allclose(loss, torch_loss.item(), rtol=1e-5)
  parameters = dict(network.named_parameters())
  assert len(parameters) == len(variables)
  for path, parameter in parameters.items():
    layer, _, name = path.rpartition('.')
    layer = layers[layer.rpartition('.')[2]]
    got = of_loss[id(layer.trainable_variables[name == 'bias'].value)]
    want = parameter.grad.numpy()
    if want.ndim > 1:
      want = np.moveaxis(want, (0, 1), (-1, -2))
    scale = np.abs(want).max()
    if name == 'bias' and path.endswith('_conv.bias') and 'final' not in path:
      assert scale < 1e-12  # normalisation takes it off again
    else:
      assert scale > 1e-7, path
    np.testing.assert_allclose(
      got, want, atol=2e-4 * scale + 1e-9, err_msg=path
    )


def test_pytorch_takes_the_same_steps(train_step, torch_networks):
  model, ours = train_step.make_ours(
    _SETTINGS | {'precision': 'float32', 'fused': True}
  )
  network, step = _make_torch(torch_networks)
  torch_networks.load_weights(network, _weights(model))
  losses = np.array(
    [
      (ours(*_batch()).numpy(), step(*_to_torch(_batch())).item())
      for _ in range(6)
    ]
  )
  # Adam follows the sign of gradients that are all rounding.
  np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-2)
  assert losses[-1, 0] < 0.99 * losses[0, 0]


@pytest.mark.long
def test_bfloat16_is_near_float32_on_both_sides(train_step, torch_networks):
  losses = {}
  for precision in ('float32', 'bfloat16'):
    keras.utils.set_random_seed(0)
    model, ours = train_step.make_ours(
      _SETTINGS | {'precision': precision, 'fused': True}
    )
    network, step = _make_torch(
      torch_networks, bfloat16=precision == 'bfloat16'
    )
    torch_networks.load_weights(network, _weights(model))
    losses[precision] = (
      ours(*_batch()).numpy(),
      step(*_to_torch(_batch())).item(),
    )
  assert losses['bfloat16'] != losses['float32']
  np.testing.assert_allclose(losses['bfloat16'], losses['float32'], rtol=0.01)


def test_flops_are_those_that_pytorch_counts(train_step, torch_networks):
  from torch.utils import flop_counter

  _, step = _make_torch(torch_networks)
  with flop_counter.FlopCounterMode(display=False) as counter:
    step.loss(*_to_torch(_batch())).backward()
  counted = counter.get_total_flops() / _SETTINGS['batch']
  assert train_step._step_flops(fused=False) == counted


def test_fused_flops_are_those_of_transposed_convolutions(
  train_step, torch_networks
):
  import torch
  from torch.utils import flop_counter

  def count(function, *arguments):
    arguments = [one.requires_grad_() for one in arguments]
    with flop_counter.FlopCounterMode(display=False) as counter:
      function(*arguments).sum().backward()
    return counter.get_total_flops()

  saved = 0
  # Of the levels that go up: channels that come in, filters, halvings.
  for channels, filters, level in ((32, 16, 2), (16, 8, 1), (8, 4, 0)):
    x, y, z = (side // 2**level for side in (16, 8, 16))
    below = torch.zeros((1, channels, x // 2, y // 2, z // 2))
    above = torch.zeros((1, channels, x, y, z))
    kernel = torch.zeros((filters, channels, 3, 3, 3))
    doubled = torch.zeros((channels, filters, 4, 4, 4))
    saved += count(
      lambda *two: torch.conv3d(*two, padding=1), above, kernel
    ) - count(
      lambda *two: torch.conv_transpose3d(*two, stride=2, padding=1),
      below,
      doubled,
    )
  assert saved > 0
  assert train_step._step_flops(fused=True) == (
    train_step._step_flops(fused=False) - saved
  )


def test_flops_of_the_full_network(train_step):
  layers = train_step.network_flops.count_layers(
    fused=False,
    size=(64, 64, 32),
    num_words=44,
    base_filters=32,
    head_filters=512,
    head_units=1024,
  )
  # Of the published network: 120 billion multiplications forward.
  assert sum(layers) / 2 == pytest.approx(120e9, rel=0.01)


def _fake_side(seconds, log=None):
  """Returns a class in the place of _Side that takes given times."""

  class FakeSide:
    def __init__(self, side, compiled=False, **settings):
      self.name = side + '_compiled' * compiled
      self.settings = settings
      self.closed = False

    def run(self, command):
      assert not self.closed
      if log is not None:
        log.append((self.name, command))
      value = seconds[self.name]
      if isinstance(value, Exception):
        raise value
      return {'step': value, 'memory': 1e9 * value, 'matmul': 5e9}[command]

    def close(self):
      self.closed = True

    def __enter__(self):
      return self

    def __exit__(self, *_):
      self.close()

  return FakeSide


def _rows(module):
  return {row[0]: row[1:] for row in module.train_step()}


def test_rows_and_ratios(train_step, monkeypatch, capsys):
  log = []
  seconds = {
    'ours': 2.0,
    'plain': 3.0,
    'pytorch': 5.0,
    'pytorch_compiled': 3.5,
    'pytorch_tuned_compiled': 3.0,
  }
  monkeypatch.setattr(train_step, '_Side', _fake_side(seconds, log))
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  with flagsaver.flagsaver(precisions=['bfloat16'], repeats=3):
    rows = _rows(train_step)
  names = [
    f'train_step_bfloat16{side}{figure}'
    for side in ('', '_plain', '_pytorch', '_pytorch_tuned')
    for figure in ('', '_share', '_memory')
  ]
  assert list(rows) == [
    'train_step_flops',
    'train_step_flops_plain',
    'matmul_bfloat16',
    *names,
  ]
  # Three cubes in two seconds.
  assert rows[names[0]] == (1.5, 'cubes/s', 1.75, 'pytorch')
  assert rows[names[2]] == (2.0, 'GB', 2 / 3.5, 'pytorch')
  assert rows[names[9]] == (1.0, 'cubes/s', 3.5 / 3, 'pytorch')
  flops = train_step._step_flops(fused=True)
  assert rows['train_step_flops'] == (flops / 1e9, 'GFLOP/cube', None, None)
  assert rows[names[1]][0] == pytest.approx(100 * 1.5 * flops / 5e9)
  plain = rows['train_step_flops_plain'][0] * 1e9
  assert rows[names[4]][0] == pytest.approx(100 * plain / 5e9)
  # In turn, and memory before the large matrices.
  turn = ['ours', 'plain', 'pytorch_compiled', 'pytorch_tuned_compiled']
  assert log[-17:-5] == 3 * [(side, 'step') for side in turn]
  assert log[-5:] == [(side, 'memory') for side in turn] + [('ours', 'matmul')]
  assert 'bfloat16: 3.5 s a step, 5 s without' in capsys.readouterr().err


@pytest.mark.parametrize('compiled', [4.5, errors.UserError('no compiler')])
def test_pytorch_that_does_not_compile(
  train_step, monkeypatch, capsys, compiled
):
  seconds = {
    'ours': 2.0,
    'plain': 3.0,
    'pytorch': 3.5,
    'pytorch_compiled': compiled,
    'pytorch_tuned': 3.0,
  }
  monkeypatch.setattr(train_step, '_Side', _fake_side(seconds))
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  with flagsaver.flagsaver(precisions=['float32']):
    rows = _rows(train_step)
  assert rows['train_step_float32'] == (1.5, 'cubes/s', 1.75, 'pytorch')
  assert rows['train_step_float32_pytorch_tuned'][0] == 1.0
  told = capsys.readouterr().err
  assert 'torch.compile in float32: ' in told
  assert ('no compiler' in told) == isinstance(compiled, Exception)


def test_without_pytorch(train_step, monkeypatch, capsys):
  seconds = {'ours': 2.0, 'plain': 3.0}
  monkeypatch.setattr(train_step, '_Side', _fake_side(seconds))
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  rows = _rows(train_step)
  assert rows['train_step_float32'] == (1.5, 'cubes/s', None, None)
  assert 'train_step_float32_pytorch' not in rows
  assert capsys.readouterr().err.count('no PyTorch: train_step_') == 2


def test_without_onednn(train_step, monkeypatch):
  seconds = {'ours': 2.0, 'plain': 3.0, 'eigen': 6.0}
  monkeypatch.setattr(train_step, '_Side', _fake_side(seconds))
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with flagsaver.flagsaver(precisions=['float32'], without_onednn=True):
    rows = _rows(train_step)
  assert rows['train_step_float32'] == (1.5, 'cubes/s', 3.0, 'eigen')
  share, own = (
    rows[f'train_step_float32{one}_share'] for one in ('_eigen', '')
  )
  assert share[0] == pytest.approx(own[0] / 3)  # of the same operations


@pytest.mark.long
def test_a_side_is_a_process(train_step):
  pytest.importorskip('torch')
  settings = {'precision': 'float32', 'compiled': False}
  with train_step._Side('pytorch', axes='zxy', **settings) as side:
    assert 0 < side.run('step') < 60
    assert 0.1e9 < side.run('memory') < 1e9
  with (
    train_step._Side('pytorch', axes='zxa', **settings) as side,
    pytest.raises(errors.UserError, match=r'of pytorch failed: ValueError: '),
  ):
    side.run('step')


@pytest.mark.long
def test_the_command():
  pytest.importorskip('torch')
  sizes = ('--base_filters=1', '--head_filters=2', '--head_units=2')
  done = subprocess.run(
    [
      *(sys.executable, 'tools/benchmark.py', 'train_step', *sizes),
      *('--size=8,8,8', '--batch=2', '--repeats=1', '--notorch_compile'),
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  rows = [line.split(', ') for line in done.stdout.splitlines()]
  assert len(rows) == 2 + 2 * (1 + 4 * 3)
  for name, value, unit, _, ratio_to in rows:
    assert float(value) > 0
    if unit == 'GB':
      assert 0.1 < float(value) < 3, name
      assert ratio_to == 'pytorch'
