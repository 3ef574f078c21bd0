#!/usr/bin/env bash
# A docker engine that is all this test's own: in namespaces for mounts, network, processes and control groups, where no
# engine runs (a build machine that is a container itself). Root on Debian; ending its first process ends all of it.
#   private-docker.sh up DIR [host]   start; with `host`, on the machine's own network (to build), without a bridge
#   private-docker.sh in DIR CMD...   run CMD where the published ports are
#   private-docker.sh down DIR        stop
set -euo pipefail
verb=$1 dir=$(mkdir -p "$2" && readlink -f "$2")
shift 2

inside() {
    set -e
    # control groups of version 1, as far as the kernel has them, below those of this process
    for point in $(awk '$2 ~ "^/sys/fs/cgroup" {print $2}' /proc/mounts | tac); do umount "$point"; done
    mount -t tmpfs tmpfs /sys/fs/cgroup
    for one in cpu cpuacct cpuset memory devices freezer blkio pids; do
        mkdir "/sys/fs/cgroup/$one"
        mount -t cgroup -o "$one" cgroup "/sys/fs/cgroup/$one" 2>/dev/null || rmdir "/sys/fs/cgroup/$one"
    done
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    mkdir -p /run/docker /run/netns
    mount -t tmpfs tmpfs /run/docker
    mount -t tmpfs tmpfs /run/netns
    rm -rf "$DIR/exec" "$DIR/docker.pid"
    options=(--data-root "$DIR/data" --exec-root "$DIR/exec" --pidfile "$DIR/docker.pid" -H "unix://$DIR/docker.sock"
        --storage-driver=overlay2 --default-ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)")
    if [ "$NETWORK" = host ]; then
        options+=(--iptables=false --bridge=none --ip-forward=false)
    else
        ip link set lo up
    fi
    exec dockerd "${options[@]}" >"$DIR/dockerd.log" 2>&1
}

child() { # of the unshare that `up` started
    cat "/proc/$(cat "$dir/pid")/task/$(cat "$dir/pid")/children" | tr -d ' '
}

case $verb in
inside) inside ;;
up)
    NETWORK=${1:-own}
    spaces=(--mount --propagation private --pid --cgroup --uts --fork --mount-proc --kill-child)
    [ "$NETWORK" = host ] || spaces+=(--net)
    DIR=$dir NETWORK=$NETWORK unshare "${spaces[@]}" tini -s -- bash "$(readlink -f "$0")" inside "$dir" \
        </dev/null >"$dir/up.log" 2>&1 &
    echo $! >"$dir/pid"
    for _ in $(seq 600); do
        docker -H "unix://$dir/docker.sock" info >/dev/null 2>&1 && exit 0
        sleep 0.1
    done
    tail -n 5 "$dir/up.log" "$dir/dockerd.log" >&2
    exit 1
    ;;
in) exec nsenter -t "$(child)" -m -n -p -C -u --wd="$PWD" "$@" ;;
down)
    first=$(cat "$dir/pid")
    kill -TERM "$(child)" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$first" 2>/dev/null || exit 0
        sleep 0.1
    done
    kill -KILL "$first"
    ;;
esac
