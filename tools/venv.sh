# Makes .venv at the root of the repository and installs the package in it.
#
# Sourced by test.sh, check.sh and quickstart.sh; leaves the shell in the root,
# with .venv first on PATH. Installs again only when setup.py has changed.
# Versions are those of tools/constraints/newest.txt, where they fit the machine;
# VERSIONS=newest takes the newest releases instead.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

_install_pinned() {
  local pins=tools/constraints/newest.txt
  [ "${VERSIONS:-pinned}" = pinned ] || return 1
  .venv/bin/python -c 'import platform, sys; sys.exit(
    sys.version_info[:2] != (3, 11) or sys.platform != "linux"
    or platform.machine() != "x86_64")' || return 1
  .venv/bin/python -m pip install --quiet --constraint "$pins" \
    --editable '.[dev]' || {
    echo "note: the versions of $pins cannot be installed here; trying the" \
      'newest' >&2
    return 1
  }
}

_install() {
  local python="${PYTHON:-python3}"
  if ! "$python" -c 'import sys
sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; then
    echo "error: Python 3.11, 3.12 or 3.13 is needed, $python is" \
      "$("$python" --version 2>&1); set PYTHON to another one" >&2
    return 1
  fi
  if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv || {
      rm -rf .venv
      echo "error: cannot make .venv; is Python's venv module installed?" >&2
      return 1
    }
  fi
  echo 'installing into .venv (some minutes, about 3 GB) ...'
  _install_pinned || .venv/bin/python -m pip install --quiet --editable '.[dev]'
  cp setup.py .venv/installed_setup.py
}

if ! cmp -s setup.py .venv/installed_setup.py; then
  _install
fi
export PATH="$PWD/.venv/bin:$PATH"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
