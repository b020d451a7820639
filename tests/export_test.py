"""`python -m transvw_tf2.export` from the outside."""

import os
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf

from transvw_tf2.models import visual_word_net
from transvw_tf2.training import checkpoints

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_CUBE = (4, 4, 4)


def _run(**named):
  arguments = [f'--{name}={value}' for name, value in named.items()]
  return subprocess.run(
    [sys.executable, '-m', 'transvw_tf2.export', *arguments],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=False,
  )


def test_exports_a_workdir(tmp_path):
  model = visual_word_net.VisualWordNet(
    num_words=2, base_filters=1, depth=2, head_filters=2, head_units=2
  )
  cubes = np.random.default_rng(0).random((2, *_CUBE, 1), np.float32)
  model(cubes, training=True)
  run = tmp_path / 'run'
  run.mkdir()
  checkpoints.write_description(
    str(run),
    {
      'model': keras.saving.serialize_keras_object(model),
      'shape': _CUBE,
      'volume': 'cube',
      'words': ['one', 'two'],
    },
  )
  checkpoints.Checkpoints(
    str(run), model=model, progress=checkpoints.Progress()
  ).save_best(1)

  output = str(tmp_path / 'model')
  done = _run(workdir=run, output=output)
  assert done.returncode == 0, done.stderr
  hu = tf.constant(cubes * 2000 - 1000)
  function = tf.saved_model.load(output).signatures['serving_default']
  np.testing.assert_allclose(
    function(cubes=hu)['embedding'], model(cubes)['embedding'], atol=1e-5
  )

  done = _run(workdir=tmp_path / 'run', output=output)
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith('error: output') and '--overwrite' in last
  assert 'Traceback' not in done.stderr
