"""Ends a run in good order when the machine is wanted back (SIGTERM)."""

import signal
import threading

# EX_TEMPFAIL of sysexits.h: all is saved, the same command goes on.
EXIT_CODE = 75


class Interrupted(Exception):
  """A run was asked to stop; all is saved. The text is for people."""


class Interruption:
  """Notes SIGTERM and Ctrl-C while it is entered; the second one is obeyed.

  Attributes:
    requested: whether a signal came.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.requested = False
    self._before = {}

  def __enter__(self):
    # Python lets only the main thread set handlers.
    if threading.current_thread() is threading.main_thread():
      for number in self._SIGNALS:
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *error):
    self._put_back()

  def _note(self, number, frame):
    del number, frame
    self.requested = True
    self._put_back()

  def _put_back(self):
    while self._before:
      signal.signal(*self._before.popitem())
