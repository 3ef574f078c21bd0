#!/usr/bin/env bash
# Makes .venv with $PYTHON (python3), or says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

[ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 && exit 0

if ! command -v "$python" >/dev/null; then
    echo "tiflow needs Python 3.11 or newer, and there is no $python: apt-get install python3 python3-venv" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "tiflow needs Python 3.11 or newer, and $python is $("$python" -V 2>&1)." >&2
    echo "Name another one: make PYTHON=python3.12 …" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python cannot make virtual environments: apt-get install python3-venv" >&2
    exit 1
fi
"$python" -m venv .venv
