"""Starts a network from the weights of another.

Networks share parts (encoder, decoder, head); their layers have the same names
in all of them, those of the official weights.
"""

import os

import keras

from transvw_tf2 import errors
from transvw_tf2.models import blocks
from transvw_tf2.training import checkpoints

_ENCODER, _DECODER, _OUTPUT = 'encoder', 'decoder', 'output'


def start_from(model: keras.Model, source: str) -> str:
  """Copies the parts that both networks have in the same shape.

  The encoder has to fit; a decoder or head that does not fit, or is not there,
  stays as it is. A part is copied as a whole or not at all. Where batch norm
  has another epsilon, gamma makes up for it.

  Args:
    model: built; gets the weights.
    source: folder of a run, whose best checkpoint is taken, or a file that
      `keras.Model.save` wrote (.keras).

  Returns:
    What was copied and what was not, for people.

  Raises:
    UserError: no such weights, or the encoder does not fit.
  """
  try:
    line = copy_parts(_load(source), model)
  except ValueError as error:
    raise errors.UserError(f'train.start_from {source}: {error}') from error
  return f'starting from {source}: {line}'


def copy_parts(pretrained: keras.Model, model: keras.Model) -> str:
  """Copies the parts that both networks have in the same shape.

  Args:
    pretrained: a built network of this package.
    model: built; gets the weights.

  Returns:
    What was copied and what was not, for people.

  Raises:
    ValueError: the encoder does not fit.
  """
  parts = pretrained.parts
  copied, new = [], []
  for name, layers in model.parts.items():
    if name not in parts:
      problem = 'not there'
    elif name == _OUTPUT and _DECODER not in copied:
      problem = 'of another decoder'
    else:
      problem = _copy(parts[name], layers)
    if problem and name == _ENCODER:
      raise ValueError(
        f'the encoder does not fit ({problem}): set the base_filters and depth'
        ' of that network'
      )
    if problem:
      new.append(f'{name} ({problem})')
    else:
      copied.append(name)
  left = f'; new: {", ".join(new)}' if new else ''
  return f'{", ".join(copied)}{left}'


def _load(source: str) -> keras.Model:
  if not os.path.exists(source):
    raise errors.UserError(
      f'train.start_from {source!r} does not exist: give the --workdir of a run'
      ' or a .keras file'
    )
  try:
    model, _ = checkpoints.load_model(source)
  except errors.UserError as error:
    raise errors.UserError(f'train.start_from: {error}') from error
  if not hasattr(model, 'parts'):
    raise errors.UserError(
      f'train.start_from: {source} holds a {type(model).__name__}, wanted a'
      ' network of transvw_tf2.models'
    )
  return model


def _copy(sources, targets) -> str:
  """Copies the weights of a part; returns why not, if so."""
  source, target = _named_layers(sources), _named_layers(targets)
  if set(source) != set(target):
    return f'other layers: {", ".join(sorted(set(source) ^ set(target))[:3])}'
  for name, layer in target.items():
    here = [tuple(one.shape) for one in layer.weights]
    there = [tuple(one.shape) for one in source[name].weights]
    if here != there:
      return f'{name} is {there[0]} there, {here[0]} here'
  for name, layer in target.items():
    layer.set_weights(source[name].get_weights())
    if isinstance(layer, keras.layers.BatchNormalization):
      _keep_scale(layer, source[name].epsilon)
  return ''


def _keep_scale(layer, epsilon: float) -> None:
  """Makes gamma / sqrt(variance + epsilon) what it was with another epsilon.

  The networks of Keras have 1e-3, those of the PyTorch release 1e-5.
  """
  if layer.epsilon != epsilon:
    variance = layer.moving_variance
    ratio = (variance + layer.epsilon) / (variance + epsilon)
    layer.gamma.assign(layer.gamma * keras.ops.sqrt(ratio))


def _named_layers(layers) -> dict[str, keras.layers.Layer]:
  """Returns the layers with weights at or below `layers`, by name."""
  found = {}
  for layer in layers:
    below = blocks.weight_layers(layer)
    found.update(below or {layer.name: layer})
  return found
