#!/usr/bin/env bash
# Runs the tests; makes .venv first where it is missing.
#
#   bash tools/test.sh            the quick tests, under 10 minutes on 2 cores
#   bash tools/test.sh -m long    the long ones
set -euo pipefail
source "$(dirname "$0")/venv.sh"
# A file of tests stays in one process: its fixtures are made once.
python -m pytest -n 2 --dist loadfile --durations=5 -q "$@"
