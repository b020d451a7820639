"""The contract between writing and reading, by fixed values."""

import subprocess
import sys

import numpy as np
import pytest

from transvw_tf2 import schema


def test_cubes_and_window():
  assert schema.CUBE_SHAPE == (64, 64, 32)
  assert (schema.HU_MIN, schema.HU_MAX) == (-1000, 1000)


def test_splits_and_resolutions():
  assert schema.TRAIN_RESOLUTIONS == (0, 1, 2)
  assert schema.VALIDATION_RESOLUTIONS == (0,)
  assert len({schema.TRAIN, schema.VALIDATION, schema.HELD_OUT}) == 3


@pytest.mark.parametrize(
  ('scan_id', 'word', 'resolution', 'key'),
  [
    ('1.3.6.1.4.1', 0, 0, '1.3.6.1.4.1/0000/0'),
    ('a', 43, 2, 'a/0043/2'),
    ('a', 12345, 1, 'a/12345/1'),
  ],
)
def test_example_key(scan_id, word, resolution, key):
  assert schema.example_key(scan_id, word, resolution) == key


# What `printf %s TEXT | b2sum -l 64` prints, the lowest byte first.
@pytest.mark.parametrize(
  ('text', 'digest'),
  [
    ('', 'e4a6a0577479b2b4'),
    ('a.b', '4eb68d4d2828008e'),
    ('1.3.6.1.4.1.14519.5.2.1', '9179b64a5aff860a'),
    ('肺', 'a6bff1e609fc29d7'),
  ],
)
def test_stable_hash(text, digest):
  assert schema.stable_hash(text) == int.from_bytes(
    bytes.fromhex(digest), 'little'
  )


def test_stable_hash_does_not_depend_on_the_process():
  program = 'from transvw_tf2 import schema; print(schema.stable_hash("a.b"))'
  for seed in ('1', '2'):
    out = subprocess.run(
      [sys.executable, '-c', program],
      env={'PYTHONHASHSEED': seed},
      capture_output=True,
      text=True,
      check=True,
    )
    assert int(out.stdout) == schema.stable_hash('a.b')


def test_scale_hu():
  hu = np.array([-1000.0, -150.0, 0.0, 1000.0])
  np.testing.assert_array_equal(schema.scale_hu(hu), [0.0, 0.425, 0.5, 1.0])
  assert schema.scale_hu(hu.astype(np.float32)).dtype == np.float32
  assert schema.scale_hu(hu.astype(np.int16)).dtype == np.float64
