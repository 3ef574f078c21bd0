"""The files of docker-compose, as docker-compose itself reads them."""

import json

import pytest

from tests.deploy.tools import ENGINE, run, tool

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
