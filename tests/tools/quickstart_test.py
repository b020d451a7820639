"""The quickstart: the whole way, and what it leaves."""

import glob
import os
import subprocess

import numpy as np
import pytest

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


@pytest.mark.long
def test_the_whole_way(tmp_path):
  out = tmp_path / 'out'
  command = ['bash', os.path.join(_ROOT, 'tools', 'quickstart.sh'), 'out']
  done = subprocess.run(
    command, capture_output=True, text=True, cwd=tmp_path, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'words: 14, cubes: 644' in done.stdout
  assert 'rejected scans: 0' in done.stdout
  assert glob.glob(str(out / 'tfds/transvw_luna16/default/1.0.0/*.tfrecord*'))
  for name in (
    *('pretrain/model.json', 'encoder/saved_model.pb'),
    *('report/words.png', 'report/slices.png', 'report/curves.png'),
  ):
    assert (out / name).is_file(), name
  with np.load(out / 'embedding.npz') as arrays:
    assert arrays['embeddings'].shape == (3 * 3 * 4, 64)

  # Again: all of it is there, so it takes seconds and changes nothing.
  again = subprocess.run(
    command, capture_output=True, text=True, cwd=tmp_path, check=False
  )
  assert again.returncode == 0, again.stderr[-2000:]
  assert 'epoch 6:' in done.stdout and 'epoch 6:' not in again.stdout
