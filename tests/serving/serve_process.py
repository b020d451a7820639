"""Starts `python -m transvw_tf2.serve` for tests, and tiny models for it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf

from transvw_tf2.models import unet3d
from transvw_tf2.serving import export

CUBE = (8, 6, 4)
SKIPPED = "kserve is not installed: pip install '.[serve]'"

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_LINE = re.compile(
  r'serving transvw at (http://127\.0\.0\.1:\d+)(?: and gRPC at (\S+))?'
)


def cubes(count=3, seed=0):
  """Returns cubes int16 (count, X, Y, Z, 1), also outside of the HU window."""
  rng = np.random.default_rng(seed)
  return rng.integers(-1500, 2500, (count, *CUBE, 1)).astype(np.int16)


def export_encoder(path):
  """Exports a tiny encoder, and returns the Keras model."""
  model = unet3d.UNet3D(base_filters=2, depth=2)
  export.export_encoder(model, str(path), {}, cube_shape=CUBE)
  return model


class _Toy(tf.Module):
  """Signatures that no encoder has."""

  @tf.function(
    input_signature=[
      tf.TensorSpec((None, 2), tf.float32, 'a'),
      tf.TensorSpec((None,), tf.int32, 'b'),
    ]
  )
  def two(self, a, b):
    return {'sum': tf.reduce_sum(a, 1) + tf.cast(b, tf.float32), 'twice': 2 * b}

  @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, 'seconds')])
  def slow(self, seconds):
    end = tf.timestamp() + tf.cast(tf.reduce_max(seconds), tf.float64)
    now = tf.while_loop(
      lambda now: now < end, lambda now: [tf.timestamp()], [tf.timestamp()]
    )[0]
    with tf.control_dependencies([now]):
      return {
        'batch': tf.ones_like(seconds) * tf.cast(tf.size(seconds), tf.float32)
      }

  @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, 'value')])
  def picky(self, value):
    tf.debugging.Assert(tf.reduce_all(value >= 0), ['value is negative'])
    return {'root': tf.sqrt(value)}

  @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, 'text')])
  def echo(self, text):
    return {'text': text, 'raw_bytes': text}

  @tf.function(input_signature=[tf.TensorSpec((3,), tf.float32, 'fixed')])
  def unbatched(self, fixed):
    return {'total': tf.reduce_sum(fixed)}


def export_toy(path):
  """Exports a model of other signatures than those of an encoder."""
  toy = _Toy()
  names = ('two', 'slow', 'picky', 'echo', 'unbatched')
  tf.saved_model.save(
    toy, str(path), {name: getattr(toy, name) for name in names}
  )


class Server:
  """A server in a process of its own.

  Attributes:
    url: of REST.
    grpc: address of gRPC.
    process: the process.
    temporary: the folder that it has for temporary files.
  """

  def __init__(self, model, folder, *flags):
    self.temporary = folder / 'temporary'
    self.temporary.mkdir(parents=True)
    self._log = folder / 'log.txt'
    with open(self._log, 'w') as log:
      self.process = subprocess.Popen(
        [
          *(sys.executable, '-m', 'transvw_tf2.serve', f'--model={model}'),
          *('--port=0', '--grpc_port=0', *flags),
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=_ROOT,
        env={**os.environ, 'TMPDIR': str(self.temporary)},
      )
    end = time.monotonic() + 120
    while not (found := _LINE.search(self.log())):
      if self.process.poll() is not None or time.monotonic() > end:
        self.stop()
        raise RuntimeError(f'no server: {self.log()}')
      time.sleep(0.1)
    self.url, self.grpc = found.groups()

  def log(self):
    return self._log.read_text()

  def left_over(self):
    """Returns what lies in the temporary folder, once it had time to go."""
    for _ in range(50):
      if not os.listdir(self.temporary):
        break
      time.sleep(0.1)
    return os.listdir(self.temporary)

  def stop(self):
    """Ends the server as a supervisor does, and returns its exit code."""
    self.process.send_signal(signal.SIGTERM)
    try:
      return self.process.wait(60)
    except subprocess.TimeoutExpired:
      self.process.kill()
      raise


@contextlib.contextmanager
def running(model, folder, *flags):
  """Gives a Server, which must end well and leave nothing behind."""
  server = Server(model, folder, *flags)
  try:
    yield server
  finally:
    code = server.stop()
  assert code == 0, server.log()
  assert not server.left_over()
  assert 'Traceback' not in server.log(), server.log()
