#!/usr/bin/env bash
# Builds the image of tiflow, and runs clusters of docker-compose. `run-engine.sh help` says how.
set -euo pipefail

ROOT=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
export TIFLOW_IMAGE=${TIFLOW_IMAGE:-dataflow:test}
READY_S=${READY_S:-120}
DATA=/tmp/df/master

usage() {
    cat <<USAGE
Usage: run-engine.sh COMMAND

  build             build the image $TIFLOW_IMAGE
  build-local       the same, from a wheel built here (needs the tools of \`make dev-setup\`)
  deploy FILE...    start the cluster of docker-compose FILE, and wait until it is ready
  stop FILE...      stop it and remove its containers, MySQL data included; Raft data stays in $DATA
  logs FILE...      what its containers print, followed

FILE is looked up from the current directory, then from the repository's root. For example:
  ../run-engine.sh deploy ./deployments/engine/docker-compose/3m1e.yaml

TIFLOW_IMAGE, TIFLOW_MYSQL_IMAGE, TIFLOW_MYSQL_PASSWORD and READY_S (seconds to wait) come from the environment.
USAGE
}

fail() {
    echo "run-engine.sh: $*" >&2
    exit 1
}

need_docker() {
    command -v docker >/dev/null || fail "docker is not installed: see https://docs.docker.com/engine/install"
    docker version >/dev/null 2>&1 ||
        fail "the docker daemon does not answer (${DOCKER_HOST:-unix:///var/run/docker.sock}): start it, or add yourself to the group docker"
}

compose() {
    if command -v docker-compose >/dev/null; then
        docker-compose "$@"
    elif docker compose version >/dev/null 2>&1; then
        docker compose "$@"
    else
        fail "docker-compose is not installed: see https://docs.docker.com/compose/install"
    fi
}

# Sets FLAGS to -f FILE for each argument.
find_files() {
    [ $# -gt 0 ] || fail "name a file, as ./deployments/engine/docker-compose/1m1e.yaml"
    FLAGS=()
    local file
    for file in "$@"; do
        if [ -f "$file" ]; then
            FLAGS+=(-f "$(readlink -f "$file")")
        elif [ -f "$ROOT/$file" ]; then
            FLAGS+=(-f "$ROOT/$file")
        else
            fail "$file: there is no such file, neither here nor in $ROOT"
        fi
    done
}

build() {
    need_docker
    cd "$ROOT"
    local options=(--build-arg "WHEEL=${1:-}")
    local version revision
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    # BUILD_ARGS: for a build behind a proxy, say
    # shellcheck disable=SC2086
    docker build -f deployments/engine/docker/Dockerfile -t "$TIFLOW_IMAGE" \
        --build-arg "VERSION=$version" --build-arg "REVISION=$revision" "${options[@]}" ${BUILD_ARGS:-} .
}

build_local() {
    cd "$ROOT"
    rm -f dist/tiflow-*.whl
    make --no-print-directory wheel
    build "$(cd dist && echo tiflow-*.whl)"
}

deploy() {
    find_files "$@"
    need_docker
    docker image inspect "$TIFLOW_IMAGE" >/dev/null 2>&1 ||
        fail "there is no image $TIFLOW_IMAGE: build it with \`run-engine.sh build\`, or name another one in TIFLOW_IMAGE"
    check_ports
    if ! compose "${FLAGS[@]}" up --detach --wait --wait-timeout "$READY_S"; then
        compose "${FLAGS[@]}" ps --all >&2 || true
        fail "the cluster was not ready in $READY_S s: see \`run-engine.sh logs $*\`; an old cluster's data in $DATA may be in the way (sudo rm -rf $DATA)"
    fi
    wait_for_executors "$@"
    echo
    compose "${FLAGS[@]}" exec -T server-master-0 /tiflow raft status
    echo
    compose "${FLAGS[@]}" exec -T server-master-0 /tiflow executor list
    cat <<READY

The cluster is ready. The masters' gRPC ports on this machine are 10240 (11240, 12240), HTTP 10250 (11250, 12250).
  docker-compose ${FLAGS[*]} exec server-master-0 /tiflow job run /opt/tiflow/examples/command.toml
READY
}

# A port that something else holds is a riddle in docker's own words.
check_ports() {
    local port
    [ -z "$(compose "${FLAGS[@]}" ps --quiet 2>/dev/null)" ] || return 0 # it is ours, and deploying again is harmless
    for port in $(compose "${FLAGS[@]}" config | sed -n 's/^ *published: "\([0-9]*\)"/\1/p'); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            fail "port $port of this machine is in use: stop what listens there (another cluster? \`run-engine.sh stop\`)"
        fi
    done
}

wait_for_executors() {
    local wanted alive until=$((SECONDS + READY_S))
    wanted=$(compose "${FLAGS[@]}" config --services | grep -c '^executor-') || true
    while :; do
        alive=$(compose "${FLAGS[@]}" exec -T server-master-0 /tiflow executor list --json 2>/dev/null | grep -o '"state":"alive"' | wc -l) || alive=0
        [ "$alive" -lt "$wanted" ] || return 0
        [ $SECONDS -lt $until ] || fail "$alive of $wanted executors have joined in $READY_S s: see \`run-engine.sh logs $*\`"
        sleep 0.5
    done
}

stop() {
    find_files "$@"
    need_docker
    compose "${FLAGS[@]}" down --volumes --remove-orphans --timeout 20
}

logs() {
    find_files "$@"
    need_docker
    compose "${FLAGS[@]}" logs --follow
}

command=${1:-help}
shift || true
case $command in
build) build ;;
build-local) build_local ;;
deploy) deploy "$@" ;;
stop) stop "$@" ;;
logs) logs "$@" ;;
help | -h | --help) usage ;;
*)
    usage >&2
    exit 2
    ;;
esac
