#!/usr/bin/env bash
# A genuine MySQL server for tests, under .tools/mysql: a root file system of Debian sid, the only one of Debian's
# suites that has MySQL. Nothing of it is installed on this machine. Root on Debian; elsewhere unpack a root file system
# with MySQL there by other means.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/.tools/mysql
[ -x "$root/usr/sbin/mysqld" ] && exit 0

if ! command -v mmdebstrap >/dev/null; then
    if [ "$(id -u)" != 0 ] || [ ! -e /etc/debian_version ]; then
        echo "$root/usr/sbin/mysqld is not there, and mmdebstrap, which would fetch it, neither" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends mmdebstrap
fi
slim=()
for part in man doc locale; do slim+=("--dpkgopt=path-exclude=/usr/share/$part/*"); done
mkdir -p .tools
draft=$(mktemp -d "$root.XXXXXX")
trap 'rm -rf "$draft"' EXIT
# mirrors may be some weeks old
mmdebstrap --quiet --variant=minbase --include=mysql-server-core,mysql-client-core "${slim[@]}" \
    --aptopt='Acquire::Check-Valid-Until "false"' sid "$draft/root"
rm -rf "$root"
mv "$draft/root" "$root"
