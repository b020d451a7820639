"""Errors that a person can act on."""

import re

# A line longer than this has lost its end to whoever reads it.
_LONGEST = 1400
_END = 300


class UserError(Exception):
  """An input or a setting is wrong; the message is one clear line.

  The message names what was given, what was wanted and the next step.
  `transvw_tf2.mains.run` prints it as one line and exits with code 1.
  """

  def __init__(self, message: str):
    super().__init__(one_line(message))


def without_call(error: Exception) -> str:
  """Returns the text of an error without what gin appends.

  Which is where a configurable was called from, with its address in memory.
  """
  return re.split(r'\s+In call to configurable ', str(error))[0]


def one_line(text: str) -> str:
  """Makes one line of a text, parts of which may come from a hostile file.

  Line breaks become spaces. Escaped are control characters, which terminals
  obey, and lone surrogates (from names that are not UTF-8), which no file
  takes. What is too long loses its middle.
  """
  text = ' '.join(text.split())
  text = ''.join(
    one if one.isprintable() else repr(one).strip("'") for one in text
  )
  if len(text) > _LONGEST:
    text = f'{text[: _LONGEST - _END]} ... {text[-_END:]}'
  return text
