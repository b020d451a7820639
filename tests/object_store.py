"""A local server that speaks S3, and what is put into it."""

from collections.abc import Iterator
import contextlib
import os
from unittest import mock

import fsspec
from moto import server

BUCKET = 'bucket'


@contextlib.contextmanager
def start() -> Iterator[dict[str, str]]:
  """Starts a server with a bucket.

  Yields:
    The variables by which this process, and those that it starts, reach it.
  """
  store = server.ThreadedMotoServer('127.0.0.1', 0, verbose=False)
  store.start()
  host, port = store.get_host_and_port()
  variables = {
    'AWS_ENDPOINT_URL': f'http://{host}:{port}',
    'AWS_ACCESS_KEY_ID': 'someone',
    'AWS_SECRET_ACCESS_KEY': 'secret',
    'AWS_DEFAULT_REGION': 'us-east-1',
  }
  try:
    with mock.patch.dict(os.environ, variables):
      forget()
      _system().mkdir(BUCKET)
      yield variables
  finally:
    forget()
    store.stop()


def upload(folder: str, name: str) -> str:
  """Copies a local folder into the bucket; returns its address."""
  _system().put(os.fspath(folder) + '/', f'{BUCKET}/{name}', recursive=True)
  return f's3://{BUCKET}/{name}'


def remove(address: str) -> None:
  _system().rm(address)


def _system():
  return fsspec.filesystem('s3', use_listings_cache=False)


def forget() -> None:
  """Makes the next access read the variables and the code of s3fs anew."""
  fsspec.get_filesystem_class('s3').clear_instance_cache()
