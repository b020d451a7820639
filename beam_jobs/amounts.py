"""Amounts as text for people: bytes, seconds, speed."""

_UNITS = ('kB', 'MB', 'GB', 'TB')


def size(count: float) -> str:
  """Returns bytes such as '7.3 GB', in powers of 1000."""
  if count < 1000:
    return f'{count:.0f} bytes'
  for unit in _UNITS:
    count /= 1000
    if count < 999.95 or unit == _UNITS[-1]:
      return f'{count:.1f} {unit}'
  raise AssertionError('unreachable')


def duration(seconds: float) -> str:
  """Returns a duration such as '2 h 10 min', '5 min' or '40 s'."""
  if seconds < 99.5:
    return f'{max(1.0, seconds):.0f} s'
  minutes = round(seconds / 60)
  if minutes < 100:
    return f'{minutes} min'
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes} min' if hours < 48 else f'{hours / 24:.1f} days'


def speed(count: float, seconds: float) -> str:
  """Returns a speed such as '31.8 MB/s'."""
  return f'{count / 1e6 / max(seconds, 1e-9):.1f} MB/s'
