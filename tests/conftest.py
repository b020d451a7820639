"""What all tests share: parsed flags, seeded weights, the `long` marker.

`pytest` runs the quick tests, `pytest -m long` the long ones.
"""

import contextlib
import importlib
import os
import sys

# Before anything imports TensorFlow.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')  # as transvw_tf2.mains

# PyTorch imports it late, for its optimizers: after TensorFlow that is a
# segmentation fault (torch 2.14, TensorFlow 2.21), before it is none.
with contextlib.suppress(ImportError):
  importlib.import_module('triton._C.libtriton')

from absl import flags
import keras
import pytest


def pytest_configure(config):
  config.addinivalue_line(
    'markers', 'long: takes minutes; runs only with `-m long`'
  )
  # flagsaver and absl's temporary folders need flags that were parsed.
  flags.FLAGS(['pytest'], known_only=True)


def pytest_collection_modifyitems(config, items):
  """Leaves the long tests out where no marker was asked for."""
  if config.option.markexpr:
    return
  long = [item for item in items if item.get_closest_marker('long')]
  if long:
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if not item.get_closest_marker('long')]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Seeds random weights: what a test makes depends on no earlier test."""
  del item
  keras.utils.set_random_seed(1)


@pytest.fixture
def import_main():
  """Imports a main by name for one test and then forgets it and its flags.

  Several mains define a flag of the same name, which absl refuses within one
  process.
  """
  known = set(flags.FLAGS)
  imported = []

  def import_module(name):
    imported.append(name)
    sys.modules.pop(name, None)
    return importlib.import_module(name)

  yield import_module
  for name in imported:
    sys.modules.pop(name, None)
  for name in set(flags.FLAGS) - known:
    delattr(flags.FLAGS, name)
