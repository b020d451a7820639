r"""Lowers the compiled training step and the embedding to StableHLO text.

  python tools/benchmark.py export_step --output DIR
  python tools/benchmark.py export_step --output DIR --batches 8,16,32,64

writes DIR/NAME.stablehlo and DIR/NAME.json, where NAME is

- train_{float32,bfloat16}_{fused,plain}_{batch}: perturbation, forward, loss
  (MSE + 0.01 * cross-entropy), backward and Adam, one program;
- embed_{float32,bfloat16}_{batch}: from cubes in HU to embeddings.

Weights, moving statistics and Adam's moments are arguments, so the text is
small and random numbers can stand in for them. tools/run_stablehlo.py times the
programs with JAX on a machine that has neither TensorFlow nor this package.

The json file lists arguments and results in order, each with name, shape and
dtype; a result with `argument` is the next value of that argument. An argument
has `fill`: 'ones' or 'zeros', 'weights' (small random numbers), 'cubes' (random
numbers in `range`), 'words' (random integers in `range`) or 'seeds'.
"""

from collections.abc import Iterator
import json
import os
import re

from absl import flags
import keras
import network_flags
import network_flops
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.models import visual_word_net
from transvw_tf2.perturb import perturb

_OUTPUT = flags.DEFINE_string('output', None, 'Folder that is written.')
_BATCHES = flags.DEFINE_list('batches', ['8'], 'Cubes per step, several sizes.')
_NETWORK = network_flags.NetworkFlags()

_POLICIES = {'float32': 'float32', 'bfloat16': 'mixed_bfloat16'}
# Adam as in training.
_LEARNING_RATE, _BETA_1, _BETA_2, _EPSILON = 1e-3, 0.9, 0.999, 1e-7


def export_step() -> Iterator[tuple]:
  """Yields the size of each program."""
  if _OUTPUT.value is None:
    raise errors.UserError('export_step needs --output')
  os.makedirs(_OUTPUT.value, exist_ok=True)
  plain_flops = network_flops.count_step(
    False, size=_NETWORK.size, **_NETWORK.network
  )
  for batch in map(int, _BATCHES.value):
    for precision in _POLICIES:
      common = {'precision': precision, 'batch': batch}
      for fused in (True, False):
        network = _make_network(precision, fused)
        form = 'fused' if fused else 'plain'
        yield _export(
          f'train_{precision}_{form}_{batch}',
          *make_training_step(network, _batch_shape(batch)),
          **common,
          flops_per_cube=network_flops.count_step(
            fused, size=_NETWORK.size, **_NETWORK.network
          ),
          plain_flops_per_cube=plain_flops,
        )
      yield _export(
        f'embed_{precision}_{batch}',
        *make_embedding(network, _batch_shape(batch)),
        **common,
        flops_per_cube=network_flops.count_embedding(
          size=_NETWORK.size, **_NETWORK.network
        ),
      )


def make_training_step(network, batch_shape):
  """Returns a training step as a function of tensors alone.

  Args:
    network: built visual_word_net.VisualWordNet.
    batch_shape: (B, X, Y, Z, 1).

  Returns:
    The function, descriptions of its arguments and of its results; see the
    module. It takes and returns lists of tensors.
  """
  trainable = network.trainable_variables
  statistics = network.non_trainable_variables
  perturb_cubes = perturb.Perturb(dtype='float32')

  def step(*arguments):
    arguments = list(arguments)
    take = lambda count: [arguments.pop(0) for _ in range(count)]  # noqa: E731
    weights, means, squares = (take(len(trainable)) for _ in range(3))
    moving = take(len(statistics))
    count, cubes, words, seeds = arguments
    inputs = perturb_cubes(cubes, seeds)
    with tf.GradientTape() as tape:
      tape.watch(weights)
      outputs, moving = network.stateless_call(
        weights, moving, inputs, training=True
      )
      cross_entropy = keras.losses.sparse_categorical_crossentropy(
        words, outputs['words']
      )
      loss = tf.reduce_mean(tf.square(outputs['restored'] - cubes)) + (
        0.01 * tf.reduce_mean(cross_entropy)
      )
    gradients = tape.gradient(loss, weights)
    count += 1
    rate = _LEARNING_RATE * tf.sqrt(1 - _BETA_2**count) / (1 - _BETA_1**count)
    updated = [
      _adam(*one, rate)
      for one in zip(weights, gradients, means, squares, strict=True)
    ]
    weights, means, squares = zip(*updated, strict=True)
    return [loss, *weights, *means, *squares, *moving, count]

  state = [
    *(_describe_variable(one) for one in trainable),
    *(_describe_variable(one, 'mean/', 'zeros') for one in trainable),
    *(_describe_variable(one, 'square/', 'zeros') for one in trainable),
    *(_describe_variable(one) for one in statistics),
    _describe('count', (), 'float32', 'zeros'),
  ]
  batch = batch_shape[:1]
  arguments = [
    *state,
    _describe('cubes', batch_shape, 'float32', 'cubes', range=[0, 1]),
    _describe('words', batch, 'int32', 'words', range=[0, network.num_words]),
    _describe('seeds', (*batch, 2), 'int32', 'seeds'),
  ]
  results = [
    _describe('loss', (), 'float32'),
    *(
      _describe(one['name'], one['shape'], one['dtype'], argument=number)
      for number, one in enumerate(state)
    ),
  ]
  return step, arguments, results


def make_embedding(network, batch_shape):
  """Returns the embedding as a function of tensors; see make_training_step."""
  variables = network.encoder.variables

  def embed(*arguments):
    *weights, hu = arguments
    cubes = schema.scale_hu(tf.clip_by_value(hu, schema.HU_MIN, schema.HU_MAX))
    scope = keras.StatelessScope(zip(variables, weights, strict=True))
    with scope:
      return [network.embed(cubes)]

  window = [schema.HU_MIN, schema.HU_MAX]
  arguments = [
    *map(_describe_variable, variables),
    _describe('cubes', batch_shape, 'float32', 'cubes', range=window),
  ]
  shape = (batch_shape[0], network.embedding_size)
  return embed, arguments, [_describe('embedding', shape, 'float32')]


def lower(function, arguments) -> str:
  """Returns the StableHLO text of a function of described arguments.

  Raises:
    RuntimeError: the program takes other arguments than these.
  """
  compiled = tf.function(function, jit_compile=True, autograph=False)
  specs = [tf.TensorSpec(one['shape'], one['dtype']) for one in arguments]
  text = compiled.experimental_get_compiler_ir(*specs)(stage='stablehlo')
  # Where in which source file an operation comes from is half of the text.
  text = re.sub(r'^#loc.*\n', '', text, flags=re.MULTILINE)
  text = re.sub(r' loc\(([^()]|\([^()]*\))*\)', '', text)
  signature = text[text.index('@main(') :].partition(') -> ')[0]
  taken = signature.count('%arg')
  if taken != len(arguments):
    raise RuntimeError(
      f'the program takes {taken} arguments, wanted {len(arguments)}'
    )
  return text


def _adam(weight, gradient, mean, square, rate):
  """Returns weight and moments after one step of Adam, as Keras computes it."""
  mean += (gradient - mean) * (1 - _BETA_1)
  square += (tf.square(gradient) - square) * (1 - _BETA_2)
  weight -= rate * mean / (tf.sqrt(square) + _EPSILON)
  return weight, mean, square


def _describe_variable(variable, prefix='', fill=None):
  """Describes an argument in the place of a variable of the network."""
  name = variable.path.rpartition('/')[2]
  if fill is None:
    fill = {
      'gamma': 'ones',
      'moving_variance': 'ones',
      'kernel': 'weights',
    }.get(name, 'zeros')
  return _describe(prefix + variable.path, variable.shape, variable.dtype, fill)


def _describe(name, shape, dtype, fill=None, **more):
  described = {'name': name, 'shape': list(shape), 'dtype': dtype}
  return described | ({'fill': fill} if fill else {}) | more


def _make_network(precision, fused):
  network = visual_word_net.VisualWordNet(
    **_NETWORK.network, fused_upsampling=fused, dtype=_POLICIES[precision]
  )
  network.build(_batch_shape(None))
  return network


def _batch_shape(batch):
  return (batch, *_NETWORK.size, 1)


def _export(name, function, arguments, results, **more):
  """Writes one program and its description; returns the line on it."""
  text = lower(function, arguments)
  path = os.path.join(_OUTPUT.value, name)
  described = {
    'name': name,
    **more,
    'network': _NETWORK.network,
    'size': _NETWORK.size,
    'arguments': arguments,
    'results': results,
  }
  _write(f'{path}.stablehlo', text)
  # Last: where there is a description, there is a program.
  _write(f'{path}.json', json.dumps(described, indent=1))
  return f'export_{name}', len(text) / 1e3, 'kB', None, None


def _write(path, text):
  try:
    with open(f'{path}.partial', 'w', encoding='utf-8') as file:
      file.write(text)
    os.replace(f'{path}.partial', path)
  except OSError as error:
    raise errors.UserError(
      f'{path} cannot be written ({error}): choose another --output'
    ) from error
