"""Signals are noted once and obeyed the second time."""

import os
import signal

import pytest

from transvw_tf2.training import interruption


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted(number):
  before = signal.getsignal(number)
  with interruption.Interruption() as interrupted:
    assert not interrupted.requested
    os.kill(os.getpid(), number)
    assert interrupted.requested
    # The second one does what it always did.
    assert signal.getsignal(number) == before
  assert signal.getsignal(number) == before


def test_handlers_are_put_back():
  before = signal.getsignal(signal.SIGTERM)
  with interruption.Interruption():
    assert signal.getsignal(signal.SIGTERM) != before
  assert signal.getsignal(signal.SIGTERM) == before
