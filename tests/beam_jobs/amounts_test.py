"""Amounts as text."""

import pytest

from beam_jobs import amounts


@pytest.mark.parametrize(
  ('count', 'text'),
  [
    (0, '0 bytes'),
    (999, '999 bytes'),
    (1000, '1.0 kB'),
    (999_949, '999.9 kB'),
    (999_950, '1.0 MB'),
    (7_266_631_680, '7.3 GB'),
    (220e12, '220.0 TB'),
    (5e15, '5000.0 TB'),
  ],
)
def test_sizes(count, text):
  assert amounts.size(count) == text


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0.2, '1 s'),
    (1, '1 s'),
    (99, '99 s'),
    (100, '2 min'),
    (99 * 60, '99 min'),
    (130 * 60, '2 h 10 min'),
    (47.9 * 3600, '47 h 54 min'),
    (60 * 3600, '2.5 days'),
  ],
)
def test_durations(seconds, text):
  assert amounts.duration(seconds) == text


def test_speeds():
  assert amounts.speed(159e6, 5) == '31.8 MB/s'
  assert amounts.speed(0, 0) == '0.0 MB/s'
