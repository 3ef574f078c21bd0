"""The helm chart: what it makes of values, checked against the schemas of Kubernetes; and what it refuses."""

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

from tests.deploy.tools import ENGINE, run, tool
from tiflow import chaos
from tiflow.config import load_executor, load_master

CHART = str(ENGINE / "helm" / "tiflow")
HELMS = ("helm3", "helm4")
SECRETS = "tls.serverMasterSecret=m,tls.executorSecret=e,tls.clientSecret=c"
VALUES = {
    "defaults": "",
    "one master": "serverMaster.replicas=1,executor.replicas=1",
    "five masters, hard": "serverMaster.replicas=5,serverMaster.antiAffinity=hard,executor.antiAffinity=none",
    "tls by secrets": f"tls.enabled=true,{SECRETS}",
    "tls by cert-manager": "tls.enabled=true,tls.certManager.enabled=true,tls.certManager.issuerRef.name=ca",
    "own database": "metadata.mysql.enabled=false,metadata.externalUrlSecret=db",
    "no database": "metadata.mysql.enabled=false",
    "chaos": "chaosTestCase.enabled=true",
    "chaos with tls": f"chaosTestCase.enabled=true,tls.enabled=true,{SECRETS}",
    "everything": "chaosTestCase.enabled=true,networkPolicy.enabled=true,serviceMonitor.enabled=true,"
    "executor.labels.zone=eu,executor.slots=4",
}
WRONG = {
    "serverMaster.replicas=2": "replicas",
    "serverMster.replicas=3": "serverMster",
    "executor.slots=-1": "slots",
    "executor.antiAffinity=maybe": "antiAffinity",
    "metadata.mysql.storage.size=big": "size",
    "image.pullPolicy=Sometimes": "pullPolicy",
    "chaosTestCase.enabled=true,chaosTestCase.duration=soon": "duration",
    "chaosTestCase.workers=0": "workers",
    "serviceMonitor.interval=often": "interval",
    "executor.config=[security]": "config",
    "tls.enabled=true": "tls.executorSecret",
    "tls.enabled=true,tls.certManager.enabled=true": "issuerRef.name",
}
Told = tuple[int, str, str]  #: exit code, stdout, stderr


def template(helm: str, settings: str, *options: str) -> Told:
    done = run(tool(helm), "template", "test", CHART, *(("--set", settings) if settings else ()), *options)
    return done.returncode, done.stdout, done.stderr


def templates(settings: Mapping[str, str]) -> dict[tuple[str, str], Told]:
    """Of each name, by each helm. All at once: helm reads the chart for most of its time."""
    keys = [(helm, name) for helm in HELMS for name in settings]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(keys, pool.map(lambda key: template(key[0], settings[key[1]]), keys), strict=True))


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, str], Told]:
    return templates(VALUES)


@pytest.mark.parametrize("helm", HELMS)
def test_the_chart_is_clean(helm: str):
    done = run(tool(helm), "lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_what_it_makes_is_valid(version: str, made: dict[tuple[str, str], Told], tmp_path: Path):
    for (helm, name), (code, _, told) in made.items():
        assert code == 0, f"{helm}, {name}: {told}"
    # most documents are the same whatever the values are
    documents = dict.fromkeys(text for _, all, _ in made.values() for text in all.split("\n---\n"))
    masters = sum("kind: StatefulSet\nmetadata:\n  name: test-server-master\n" in text for text in documents)
    file = tmp_path / "all.yaml"
    file.write_text("\n---\n".join(documents))

    done = run(tool("venv/bin/kubernetes-validate"), "--strict", "-k", version, str(file))

    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("passed for resource statefulset/test-server-master ") == masters > 3


def test_pods_have_the_names_and_the_peers_that_clients_know(made: dict[tuple[str, str], Told]):
    _, text, _ = made["helm4", "defaults"]
    peers = ",".join(f"test-server-master-{number}.test-server-master.default.svc:10240" for number in range(3))
    assert f"--peers={peers}" in text
    assert f"--join={peers}" in text
    for name in ("test-server-master", "test-executor", "test-metastore-framework-mysql"):
        assert f"kind: StatefulSet\nmetadata:\n  name: {name}\n" in text
    assert "replicas: 4" in text
    assert "publishNotReadyAddresses: true" in text
    assert "chaos" not in text


def test_the_chaos_test_case_has_the_name_of_the_seeds_and_options_that_its_program_knows():
    settings = "chaosTestCase.enabled=true,chaosTestCase.duration=90s,chaosTestCase.jobs=3,tls.enabled=true"
    _, text, _ = template("helm4", f"{settings},{SECRETS}", "--show-only", "templates/chaos-test-case.yaml")
    assert "kind: Job\nmetadata:\n  name: test-chaos-test-case\n" in text
    assert "backoffLimit: 0" in text
    assert "restartPolicy: Never" in text
    assert "command: [tini, --, python3, -m, tiflow.chaos]" in text
    given = dict(re.findall(r"^ +- (--[a-z-]+)=(.*)$", text, re.MULTILINE))
    assert (given["--duration"], given["--jobs"], given["--advertise-host"]) == ("90s", "3", "$(POD_IP)")
    assert given.keys() <= {option for parameter in chaos.cli.params for option in parameter.opts}
    variables = {parameter.envvar for parameter in chaos.cli.params if parameter.envvar}
    assert set(re.findall(r"TIFLOW_[A-Z_]+", text)) == variables


@pytest.mark.parametrize("name", ["everything", "chaos with tls"])
def test_pods_have_settings_that_tiflow_takes(name: str, made: dict[tuple[str, str], Told], tmp_path: Path):
    for kind, load, others in (
        ("master", load_master, {"addr": "0.0.0.0:10240", "advertise_addr": "m0:10240"}),
        ("executor", load_executor, {"addr": "0.0.0.0:10241", "advertise_addr": "e0:10241", "join": ("m0:10240",)}),
    ):
        text = re.search(rf"^  {kind}\.toml: \|\n((?:    .*\n)+)", made["helm4", name][1], re.MULTILINE)
        assert text
        file = tmp_path / f"{kind}.toml"
        file.write_text(dedent(text[1]))
        assert load(str(file), **others).security.insecure == (name == "everything")


def test_a_setting_of_one_kind_of_pod_restarts_no_pods_of_the_other():
    def checksums(settings: str) -> list[str]:
        _, text, told = template("helm4", settings)
        assert "checksum/config" in text, told
        return re.findall(r"checksum/config: (\w+)", text)

    executor, master = checksums("")
    assert checksums("executor.slots=3")[1] == master
    assert checksums("executor.slots=3")[0] != executor
    assert checksums("serverMaster.config=keepalive-ttl = '7s'")[0] == executor


def test_wrong_values_are_refused_by_the_name_of_the_key():
    for (helm, settings), (code, _, told) in templates({settings: settings for settings in WRONG}).items():
        assert code != 0, f"{helm} takes {settings}"
        assert WRONG[settings] in told, f"{helm}, {settings}: {told}"
