"""The tiny data set, written once, and one replica to train on."""

import pytest
import tensorflow as tf

from tests.training import tiny_data


@pytest.fixture(name='data_dir', scope='session')
def _data_dir(tmp_path_factory):
  return tiny_data.write(tmp_path_factory.mktemp('tiny_data'))


@pytest.fixture(name='strategy', scope='module')
def _strategy():
  return tf.distribute.MirroredStrategy(['/cpu:0'])


@pytest.fixture(name='run', scope='module')
def _run(tmp_path_factory, strategy, data_dir):
  """A run of three epochs that nothing disturbed: its workdir and history."""
  workdir = tmp_path_factory.mktemp('run')
  return workdir, tiny_data.train(workdir, strategy, data_dir, epochs=3)
