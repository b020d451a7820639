r"""A worker process of Beam on this machine, which ends with its job.

Started by `local_workers`, with the number of the process of the job:

  python -m beam_jobs.local_worker 1234

Beam's own goes on when its job was killed, and waits for it for ever when it
has not found it yet.
"""

import os
import sys
import threading
import time

_SECONDS_BETWEEN_LOOKS = 0.5


def end_with(parent: int) -> None:
  """Ends this process when it is no child of `parent` any more."""
  while os.getppid() == parent:
    time.sleep(_SECONDS_BETWEEN_LOOKS)
  # Not sys.exit: that would wait for the work of other threads.
  os._exit(1)


def main(argv: list[str]) -> None:
  threading.Thread(
    target=end_with, args=[int(argv[1])], name='end_with', daemon=True
  ).start()
  # Late, for it takes seconds.
  from apache_beam.runners.worker import sdk_worker_main

  sdk_worker_main.main(argv[:1])


if __name__ == '__main__':
  main(sys.argv)
