#!/usr/bin/env bash
# Checks format, style and the direction of imports.
set -euo pipefail
source "$(dirname "$0")/venv.sh"
ruff format --check .
ruff check .
python -m pytest -q tests/imports_test.py
