#!/usr/bin/env bash
# Makes this checkout usable without installing it: `import tiflow` works in .venv, and bin/tiflow starts it.
# (pip install -e would need hatchling, which only building a wheel needs.)
set -euo pipefail
cd "$(dirname "$0")/.."

site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
pwd >"$site/tiflow-checkout.pth"

mkdir -p bin
cat >bin/tiflow.new <<'LAUNCHER'
#!/bin/sh
# Made by `make engine`. -P: a file of the current directory must not pass for one of our modules.
exec "$(dirname "$(readlink -f "$0")")/../.venv/bin/python" -P -m tiflow "$@"
LAUNCHER
chmod +x bin/tiflow.new
mv bin/tiflow.new bin/tiflow
