#!/usr/bin/env bash
# Writes oldest.txt and newest.txt anew, after a change of setup.py or to move to
# the releases of today; then run both ends (tools/test_bounds.sh).
#
#   bash tools/constraints/pin.sh
#
# pip cannot ask for the lowest versions, uv can: it comes into a temporary
# environment. Pins are for Python 3.11 and Linux x86_64.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

WORK="$(mktemp -d)"
trap 'rm -rf "$WORK"' EXIT
"${PYTHON:-python3}" -m venv "$WORK/venv"
"$WORK/venv/bin/python" -m pip install --quiet uv

# `cuda` is not at the lower end: beside it no torch is as old as the bound.
_pin() {
  local name="$1" what="$2"
  shift 2
  {
    echo "# $what"
    echo '# For Python 3.11 on Linux x86_64; made by tools/constraints/pin.sh on'
    echo "# $(date +%F), see tools/test_bounds.sh."
    "$WORK/venv/bin/uv" pip compile --quiet --no-header --no-annotate \
      --no-emit-index-url --no-emit-find-links --python-version 3.11 \
      --python-platform x86_64-manylinux_2_28 "$@" setup.py
  } > "$WORK/$name"
}

_extras() {
  # All extras but those given, as options.
  "$WORK/venv/bin/python" - "$@" << 'PYTHON'
import ast
import sys

with open('setup.py', encoding='utf-8') as file:
  tree = ast.parse(file.read())
for node in ast.walk(tree):
  if isinstance(node, ast.keyword) and node.arg == 'extras_require':
    for name in ast.literal_eval(node.value):
      if name not in sys.argv[1:]:
        print(f'--extra={name}')
PYTHON
}

_pin newest.txt 'The newest releases that resolve together.' $(_extras)
# Only what setup.py names is old: a newer grpcio-tools would raise grpcio.
_pin oldest.txt 'What setup.py requires, each at its lower bound.' \
  $(_extras cuda) --resolution lowest-direct \
  --constraint <(echo 'grpcio-tools<1.74')
mv "$WORK/newest.txt" "$WORK/oldest.txt" tools/constraints
