"""One cluster for all tests of a file."""

import pytest

from tests.engines import cluster_process


@pytest.fixture(name='cluster', scope='module')
def _cluster(tmp_path_factory):
  log = tmp_path_factory.mktemp('cluster') / 'log'
  with cluster_process.start(log) as cluster:
    yield cluster
