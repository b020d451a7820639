"""Runs a main: what a user can put right becomes one line, not a traceback."""

from collections.abc import Callable
import logging as std_logging
import os
import sys

from absl import app
from absl import flags
from absl import logging

from transvw_tf2 import errors
from transvw_tf2.scans import errors as scan_errors

# TensorFlow's C++ side tells little that a user can act on. Set here, for it
# is read when TensorFlow is imported, and mains import this module first.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# On a CPU without AVX512 TensorFlow takes oneDNN only when asked; its own 3D
# convolutions take several times as long.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')


def _is_for_users(record) -> bool:
  """Leaves out what TFDS tells its own developers, a line per feature."""
  own = 'tensorflow_datasets' in record.pathname
  return not own or record.levelno > logging.converter.absl_to_standard(
    logging.WARNING
  )


def _log_for_users() -> None:
  """Shows warnings, or what --verbosity asks for, once each."""
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  logging.get_absl_logger().addFilter(_is_for_users)
  # TensorFlow would print its messages through a handler of its own as well.
  tensorflow_logger = std_logging.getLogger('tensorflow')
  tensorflow_logger.handlers.clear()
  tensorflow_logger.setLevel(logging.get_absl_logger().getEffectiveLevel())


def run(
  main: Callable[[list[str]], int | None],
  *,
  known_only: bool = False,
  positional: bool = False,
) -> None:
  """Runs `main` under absl.app.run and exits.

  Prints `error: ...` on one line of stderr and exits with code 1 when `main`
  raises errors.UserError or reader.ScanError; any other exception is a defect
  and keeps its traceback. Arguments that are not flags are refused unless
  `main` takes them.

  Args:
    main: takes the arguments that are not flags, argv[0] first; what it
      returns is the exit code (None is 0).
    known_only: leave flags that are not defined in argv, for a main that hands
      them on (to Beam) and checks them, and what is no flag, itself.
    positional: whether `main` takes arguments that are not flags.
  """

  def guarded(argv):
    _log_for_users()
    try:
      if len(argv) > 1 and not (positional or known_only):
        raise errors.UserError(
          f'unexpected arguments {" ".join(argv[1:])}; wanted only flags, such'
          ' as --name=value, or --name and --noname where it is yes or no'
        )
      return main(argv)
    except (errors.UserError, scan_errors.ScanError) as error:
      text = ' '.join(errors.without_call(error).split())
      print('error:', text, file=sys.stderr)
      return 1

  app.run(guarded, **({'flags_parser': _parse_known} if known_only else {}))


def _parse_known(argv):
  # absl's own parser turns a wrong flag into a line, but takes only known ones.
  try:
    return flags.FLAGS(argv, known_only=True)
  except flags.Error as error:
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    sys.exit(1)
