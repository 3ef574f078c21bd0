#!/usr/bin/env bash
# Builds the image of tiflow, and runs clusters of docker-compose. `run-engine.sh help` says how.
set -euo pipefail

ROOT=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
export TIFLOW_IMAGE=${TIFLOW_IMAGE:-dataflow:test}
READY_S=${READY_S:-120}
DATA=/tmp/df/master
CLUSTERS=deployments/engine/docker-compose

usage() {
    cat <<USAGE
Usage: run-engine.sh COMMAND

  build             build the image $TIFLOW_IMAGE
  build-local       the same, from a wheel built here (needs the tools of \`make dev-setup\`)
  deploy FILE...    start the cluster of docker-compose FILE, and wait until it is ready; over one that runs, start
                    and remove what differs (the number of masters must stay)
  stop FILE...      stop it and remove its containers, MySQL data included; Raft data stays in $DATA
  logs [FILE...]    what its containers print, followed

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

# Sets COMPOSE to the words that start docker-compose 2 or newer.
need_compose() {
    local version old=
    if command -v docker-compose >/dev/null; then
        version=$(docker-compose version --short 2>/dev/null) || fail "docker-compose does not start: run \`docker-compose version\` to see why"
        version=${version#v}
        case $version in
        1.*) old=$version ;;
        *) COMPOSE=(docker-compose) && return 0 ;;
        esac
    fi
    if docker compose version >/dev/null 2>&1; then
        COMPOSE=(docker compose)
        return 0
    fi
    [ -z "$old" ] || fail "docker-compose $old is too old, 2.17 or newer is needed: see https://docs.docker.com/compose/install"
    fail "docker-compose is not installed: see https://docs.docker.com/compose/install"
}

compose() {
    "${COMPOSE[@]}" "${FLAGS[@]}" "$@"
}

# Sets FLAGS to -f FILE for each argument, and FILES to the arguments, to be shown in commands.
find_files() {
    [ $# -gt 0 ] || fail "name a file, as ./$CLUSTERS/1m1e.yaml"
    FLAGS=() FILES=$*
    local file
    for file in "$@"; do
        if [ -f "$file" ]; then
            FLAGS+=(-f "$(readlink -f "$file")")
        elif [ -f "$ROOT/$file" ]; then
            FLAGS+=(-f "$(readlink -f "$ROOT/$file")")
        else
            fail "$file: there is no such file, neither here nor in $ROOT; those of this project are in ./$CLUSTERS"
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
    need_docker
    cd "$ROOT"
    rm -f dist/tiflow-*.whl
    make --no-print-directory wheel
    build "$(cd dist && echo tiflow-*.whl)"
}

deploy() {
    [[ $READY_S =~ ^[1-9][0-9]*$ ]] || fail "READY_S = $READY_S: must be a whole number of seconds, as 120"
    find_files "$@"
    need_docker
    need_compose
    # not in a pipe: grep -q would close it early
    [[ $("${COMPOSE[@]}" up --help) == *--wait-timeout* ]] ||
        fail "docker-compose $("${COMPOSE[@]}" version --short) is too old, 2.17 or newer is needed: see https://docs.docker.com/compose/install"
    read_config
    check_images
    check_running
    check_ports
    if ! compose up --detach --remove-orphans --wait --wait-timeout "$READY_S"; then
        show_trouble >&2
        fail "the cluster did not become ready (for which it has READY_S = $READY_S s): see the lines above and \`run-engine.sh logs $FILES\`; where old data in $DATA is in the way: \`run-engine.sh stop $FILES\`, sudo rm -rf $DATA"
    fi
    wait_for_executors
    echo
    compose exec -T server-master-0 /tiflow raft status
    echo
    compose exec -T server-master-0 /tiflow executor list
    cat <<READY

The cluster is ready. The masters' gRPC ports on this machine are 10240 (11240, 12240), HTTP 10250 (11250, 12250).
  ${COMPOSE[*]} ${FLAGS[*]} exec server-master-0 /tiflow job run /opt/tiflow/examples/command.toml
READY
}

# Sets CONFIG to what docker-compose makes of the files, SERVICES to their services and PROJECT to their name.
read_config() {
    CONFIG=$(compose config) || fail "docker-compose cannot read $FILES; what it says of it is above"
    SERVICES=$(compose config --services)
    PROJECT=$(sed -n 's/^name: //p' <<<"$CONFIG")
    grep -qx server-master-0 <<<"$SERVICES" ||
        fail "$FILES has no service server-master-0, so that it is no cluster; those of this project are ./$CLUSTERS/[13]m*.yaml"
}

check_images() {
    docker image inspect "$TIFLOW_IMAGE" >/dev/null 2>&1 ||
        fail "there is no image $TIFLOW_IMAGE: build it with \`run-engine.sh build\`, or name another one in TIFLOW_IMAGE"
    local image told
    while read -r image; do
        docker image inspect "$image" >/dev/null 2>&1 && continue
        echo "pulling $image"
        told=$(docker pull --quiet "$image" 2>&1) ||
            fail "there is no image $image, and it cannot be pulled ($(tail -n 1 <<<"$told")): load it with \`docker load\`, or name another one (TIFLOW_MYSQL_IMAGE for MySQL's)"
    done < <(sed -n 's/^    image: //p' <<<"$CONFIG" | sort -u)
}

containers() { # FORMAT, of what runs of this project, whatever file it came from
    docker ps --all --filter "label=com.docker.compose.project=$PROJECT" --format "$1"
}

# What runs already and is not in the files goes, but for masters: their number is for ever.
check_running() {
    local there masters gone
    there=$(containers '{{.Label "com.docker.compose.service"}}' | sort -u)
    [ -n "$there" ] || return 0
    masters=$(grep '^server-master-' <<<"$there" | paste -sd ' ') || true
    [ -z "$masters" ] || [ "$masters" = "$(grep '^server-master-' <<<"$SERVICES" | sort -u | paste -sd ' ')" ] ||
        fail "a cluster with other masters is here ($masters), and the number of masters cannot change: \`run-engine.sh stop $FILES\`, sudo rm -rf $DATA, then deploy again"
    gone=$(comm -23 <(echo "$there") <(sort -u <<<"$SERVICES") | paste -sd ' ')
    [ -z "$gone" ] || echo "removing what is not in $FILES: $gone"
}

# A port that something else holds is a riddle in docker's own words.
check_ports() {
    local port ours
    ours=$(containers '{{.Ports}}' | grep -o ':[0-9]*->' | tr -d ':>-') || true
    while read -r port; do
        grep -qx "$port" <<<"$ours" && continue
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            fail "port $port of this machine is in use: stop what listens there (\`ss -ltnp 'sport = :$port'\` names it)"
        fi
    done < <(sed -n 's/^ *published: "\([0-9]*\)"/\1/p' <<<"$CONFIG")
}

wait_for_executors() {
    local wanted alive until=$((SECONDS + READY_S))
    wanted=$(grep -c '^executor-' <<<"$SERVICES") || true
    while :; do
        alive=$(compose exec -T server-master-0 /tiflow executor list --json 2>/dev/null | grep -o '"state":"alive"' | wc -l) || alive=0
        [ "$alive" -lt "$wanted" ] || return 0
        [ $SECONDS -lt $until ] || fail "$alive of $wanted executors have joined in $READY_S s: see \`run-engine.sh logs $FILES\`"
        sleep 0.5
    done
}

# The state of all, and the last words of those that do not run well.
show_trouble() {
    compose ps --all || true
    local service state health
    while read -r service state health; do
        [[ $state = running && ${health:-healthy} = healthy ]] || [ "$service" = prepare ] || [ "$service" = certificates ] && continue
        compose logs --no-color --tail 3 "$service" || true
    done < <(compose ps --all --format '{{.Service}} {{.State}} {{.Health}}')
}

stop() {
    find_files "$@"
    need_docker
    need_compose
    compose down --volumes --remove-orphans --timeout 20
}

logs() {
    if [ $# -gt 0 ]; then
        find_files "$@"
        need_docker
        need_compose
    else
        need_docker
        need_compose
        PROJECT=${COMPOSE_PROJECT_NAME:-tiflow}
        [ -n "$(containers '{{.ID}}')" ] || fail "no cluster is deployed: run-engine.sh deploy ./$CLUSTERS/1m1e.yaml"
        FLAGS=(-p "$PROJECT")
    fi
    compose logs --follow
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
    echo "run-engine.sh: $command: there is no such command" >&2
    usage >&2
    exit 2
    ;;
esac
