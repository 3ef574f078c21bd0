"""The files of docker-compose, as docker-compose itself reads them."""

import json
import re
from pathlib import Path

import pytest

from tests.deploy.tools import ENGINE, REPOSITORY, run, tool

COMPOSE = ENGINE / "docker-compose"
CLUSTERS = {"1m1e": (1, 1), "1m3e": (1, 3), "3m1e": (3, 1), "3m3e": (3, 3), "3m3e_with_tls": (3, 3)}


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_has_what_its_name_says(name: str):
    done = run(tool("venv/bin/docker-compose"), "-f", str(COMPOSE / f"{name}.yaml"), "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    masters = [service for service in services if service.startswith("server-master-")]
    executors = [service for service in services if service.startswith("executor-")]
    assert (len(masters), len(executors)) == CLUSTERS[name]
    peers = ",".join(f"{master}:10240" for master in masters)
    published: list[str] = []
    for service in (*masters, *executors):
        command = services[service]["command"]
        assert f"{service}:{10240 if service in masters else 10241}" == command[command.index("--advertise-addr") + 1]
        if service in executors or len(masters) > 1:
            assert peers == command[command.index("--peers" if service in masters else "--join") + 1]
        assert services[service]["read_only"]
        published += [port["published"] for port in services[service].get("ports", [])]
    assert len(set(published)) == len(published) == 2 * len(masters)
    data = {services[master]["volumes"][-1 if name != "3m3e_with_tls" else -2]["source"] for master in masters}
    assert data == {f"/tmp/df/master/{number}" for number in range(1, len(masters) + 1)}


def test_monitoring_has_its_files_and_knows_the_names_of_metrics():
    files = [word for name in ("3m1e", "monitoring") for word in ("-f", str(COMPOSE / f"{name}.yaml"))]
    done = run(tool("venv/bin/docker-compose"), *files, "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    mounts = [
        mount["source"]
        for name in ("prometheus", "grafana")
        for mount in services[name]["volumes"]
        if mount["type"] == "bind"
    ]
    assert len(mounts) == 4
    assert all(Path(mount).is_file() for mount in mounts)

    targets = re.findall(r"([\w-]+):10250", (COMPOSE / "monitoring/prometheus.yml").read_text())
    assert targets == [name for name in services if name.startswith("server-master-")]
    shown = set(re.findall(r"tiflow_\w+", (COMPOSE / "monitoring/tiflow.json").read_text()))
    source = (REPOSITORY / "tiflow/web/app.py").read_text()
    assert len(shown) > 5
    assert not {name for name in shown if f'"{name.removesuffix("_total")}' not in source}
