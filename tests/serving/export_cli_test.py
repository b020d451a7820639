"""An exported model in TensorFlow's own `saved_model_cli`, without Keras."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from transvw_tf2.models import visual_word_net
from transvw_tf2.serving import export

_CUBE = (4, 8, 4)


def _run_cli(*arguments):
  # Beside the interpreter: PATH may lead to another environment.
  tool = os.path.join(os.path.dirname(sys.executable), 'saved_model_cli')
  done = subprocess.run(
    [tool, *arguments], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.mark.long
def test_saved_model_cli_shows_and_runs_it(tmp_path):
  model = visual_word_net.VisualWordNet(
    num_words=3, base_filters=2, depth=2, head_filters=4, head_units=5
  )
  rng = np.random.default_rng(0)
  model(rng.random((4, *_CUBE, 1), np.float32), training=True)
  path = str(tmp_path / 'model')
  heads = ('restore', 'classify_word')
  export.export_encoder(model, path, {}, cube_shape=_CUBE, heads=heads)

  shown = _run_cli('show', '--dir', path, '--all')
  for name, output in (
    ('embed_cubes', 'embedding'),
    ('embed_cubes_int16', 'embedding'),
    ('embed_bytes', 'embedding'),
    ('restore', 'restored'),
    ('classify_word', 'probabilities'),
  ):
    pattern = rf"signature_def\['{name}'\].*?outputs\['{output}'\]"
    assert re.search(pattern, shown, re.DOTALL), name

  hu = rng.uniform(-1500, 1500, (2, *_CUBE, 1)).astype(np.float32)
  np.save(tmp_path / 'hu.npy', hu)
  scaled = (np.clip(hu, -1000, 1000) + 1000) / 2000
  _run_cli(
    *('run', '--dir', path, '--tag_set', 'serve'),
    *('--signature_def', 'restore'),
    *('--inputs', f'cubes={tmp_path / "hu.npy"}', '--outdir', str(tmp_path)),
  )
  want = model(scaled)['restored'].numpy() * 2000 - 1000
  got = np.load(tmp_path / 'restored.npy')
  assert got.dtype == np.float32 and got.shape == want.shape
  assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
