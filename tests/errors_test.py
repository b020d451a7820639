"""Messages stay one line, whatever the files have in them."""

import copy
import pickle

import pytest

from transvw_tf2 import errors
from transvw_tf2.scans import reader


@pytest.mark.parametrize(
  ('text', 'line'),
  [
    ('a\nb\r\n c', 'a b c'),
    ('a\x1b[31m\0b', 'a\\x1b[31m\\x00b'),
    ('caf\u00e9', 'caf\u00e9'),
    ('a\udcffb', 'a\\udcffb'),
    ('\u2028', ''),
  ],
)
def test_one_line(text, line):
  assert errors.one_line(text) == line
  assert str(errors.UserError(text)) == line
  assert str(reader.ScanError('why', text)).rstrip() == f'why: {line}'.rstrip()
  line.encode()


def test_long_messages_keep_their_ends():
  text = 'first ' + 'x' * 100_000 + ' last'
  line = str(errors.UserError(text))
  assert len(line) < 1500
  assert line.startswith('first xxx') and line.endswith('xxx last')
  assert errors.one_line('x' * 1400) == 'x' * 1400


def test_errors_can_be_sent_to_another_process():
  for error in (errors.UserError('a'), reader.ScanError('why', 'b')):
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
      assert (type(again), str(again)) == (type(error), str(error))
