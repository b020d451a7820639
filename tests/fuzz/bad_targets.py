"""Readers that do what none may: the harness has to find each."""

import ctypes
import os
import pickle
import signal
import time

import numpy as np

from tests.fuzz import mutations
from tests.fuzz import targets
from transvw_tf2 import errors


def _content(folder):
  with open(os.path.join(folder, 'x'), 'rb') as file:
    return file.read()


def _refuse(folder):
  raise errors.UserError(f'{folder} is refused')


def _raise(folder):
  raise KeyError(folder)


class _TwoLines(errors.UserError):
  def __str__(self):
    return 'two\nlines'


def _raise_lines(folder):
  raise _TwoLines(folder)


def _crash(folder):
  del folder
  ctypes.string_at(0)


def _hang(folder):
  del folder
  time.sleep(60)


def _hang_natively(folder):
  del folder
  # Python runs no handler before it is back from C, where the alarm must not
  # end the sleep.
  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
  ctypes.PyDLL(None).sleep(600)


def _fill(folder):
  del folder
  np.ones(80 * 2**20)


def _unpickle(folder):
  del folder
  pickle.loads(pickle.dumps(mutations.MakeCanary()))


def _leave(folder):
  with open(os.path.join(folder, 'more'), 'w'):
    pass


def _write_elsewhere(folder):
  path = os.path.join(folder, '..', 'elsewhere')
  with open(path, 'w'):
    pass
  os.remove(path)


def _target(name, read):
  """Returns a target whose second half of cases alone is read so."""

  def read_half(folder):
    if _content(folder) == b'\x01':
      read(folder)

  return targets.Target(
    name=name,
    seeds=lambda _: [{'x': b'\0'}],
    mutate=lambda rng, files: {'x': bytes([int(rng.integers(2))])},
    read=read_half,
    errors=(errors.UserError,),
    modules=(),
  )


# By name: what the harness says.
SAYS = {
  'refuse': None,
  'raise': 'raised another error',
  'raise lines': 'raised no single line',
  'crash': 'SIGSEGV',
  'hang': 'did not end',
  'hang natively': 'SIGKILL',
  'fill': 'MB',
  'unpickle': 'did what no reader does',
  'leave': 'left files behind',
  'write elsewhere': 'for writing',
}
TARGETS = tuple(
  _target(name, globals()[f'_{name.replace(" ", "_")}']) for name in SAYS
)
