#!/usr/bin/env bash
# Runs the quick tests at one end of what setup.py allows, in an environment of
# its own in a temporary folder (about 3 GB, removed afterwards).
#
#   bash tools/test_bounds.sh oldest    every requirement at its lower bound
#   bash tools/test_bounds.sh newest    whatever pip finds newest today
#   bash tools/test_bounds.sh pinned    tools/constraints/newest.txt
#
# More arguments go to pytest, such as `tests/scans tests/discovery`. `oldest`
# needs Python 3.11 (PYTHON names another one): scipy 1.11.1 has no wheels for
# later ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  oldest) CONSTRAINTS=(--constraint tools/constraints/oldest.txt) ;;
  newest) CONSTRAINTS=() ;;
  pinned) CONSTRAINTS=(--constraint tools/constraints/newest.txt) ;;
  *)
    echo "error: got '${1:-}', wanted oldest, newest or pinned" >&2
    exit 2
    ;;
esac
shift

WORK="$(mktemp -d)"
trap 'rm -rf "$WORK"' EXIT
"${PYTHON:-python3}" -m venv "$WORK/venv"
export PATH="$WORK/venv/bin:$PATH"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
python -m pip install --quiet "${CONSTRAINTS[@]}" --editable '.[dev]'
python -m pip check
python -m pytest -n 2 --dist loadfile -q "$@"
