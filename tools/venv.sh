# Makes .venv at the root of the repository and installs the package in it.
#
# Sourced by test.sh, check.sh and quickstart.sh; leaves the shell in the root,
# with .venv first on PATH. Installs again only when setup.py has changed.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

_install() {
  local python="${PYTHON:-python3}"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: Python 3.11 or newer is needed, $python is" \
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
  .venv/bin/python -m pip install --quiet --editable '.[dev]'
  cp setup.py .venv/installed_setup.py
}

if ! cmp -s setup.py .venv/installed_setup.py; then
  _install
fi
export PATH="$PWD/.venv/bin:$PATH"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
