#!/usr/bin/env bash
# What `make engine_unit_test` needs beyond Python packages: the venv module, a MariaDB server for the tests marked
# mysql, and strace for those that let a disk fail. As root on Debian it installs them; elsewhere it says how.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/usr/local/sbin"

missing=()
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# The core packages bring the programs alone: no service, no database of the system.
command -v mariadbd >/dev/null && command -v mariadb-install-db >/dev/null ||
    missing+=(mariadb-server-core mariadb-client-core)
command -v strace >/dev/null || missing+=(strace)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
    exit 0
fi
echo "Missing: ${missing[*]}. On Debian and Ubuntu: sudo apt-get install ${missing[*]}" >&2
echo "Without MariaDB (mariadbd, mariadb-install-db) the tests marked mysql are skipped, or fail if CI=true." >&2
echo "Without strace the tests of failing disks are skipped." >&2
