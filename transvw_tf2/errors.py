"""Errors that a person can act on."""


class UserError(Exception):
  """An input or a setting is wrong; the message is one clear line.

  The message names what was given, what was wanted and the next step.
  `transvw_tf2.mains.run` prints it as one line and exits with code 1.
  """
