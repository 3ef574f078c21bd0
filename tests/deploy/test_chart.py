"""The helm chart: what it makes of values, checked against the schemas of Kubernetes; and what it refuses."""

import re
from pathlib import Path

import pytest

from tests.deploy.tools import ENGINE, run, tool
from tiflow import chaos

CHART = str(ENGINE / "helm" / "tiflow")
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


def template(helm: str, settings: str, *options: str) -> tuple[int, str, str]:
    done = run(tool(helm), "template", "test", CHART, *(("--set", settings) if settings else ()), *options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("helm", ["helm3", "helm4"])
def test_the_chart_is_clean(helm: str):
    done = run(tool(helm), "lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("helm", ["helm3", "helm4"])
@pytest.mark.parametrize("name", VALUES)
def test_what_it_makes_is_valid(helm: str, name: str, tmp_path: Path):
    code, made, told = template(helm, VALUES[name])
    assert code == 0, told
    file = tmp_path / "all.yaml"
    file.write_text(made)
    for version in ("1.31", "1.37") if helm == "helm4" else ("1.31",):
        done = run(tool("venv/bin/kubernetes-validate"), "--strict", "-k", version, str(file))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "passed for resource statefulset/test-server-master " in done.stdout + done.stderr


def test_pods_have_the_names_and_the_peers_that_clients_know():
    _, made, _ = template("helm4", "")
    peers = ",".join(f"test-server-master-{number}.test-server-master.default.svc:10240" for number in range(3))
    assert f"--peers={peers}" in made
    assert f"--join={peers}" in made
    for name in ("test-server-master", "test-executor", "test-metastore-framework-mysql"):
        assert f"kind: StatefulSet\nmetadata:\n  name: {name}\n" in made
    assert "replicas: 4" in made
    assert "publishNotReadyAddresses: true" in made


def test_the_chaos_test_case_has_the_name_of_the_seeds_and_options_that_its_program_knows():
    settings = "chaosTestCase.enabled=true,chaosTestCase.duration=90s,chaosTestCase.jobs=3,tls.enabled=true"
    _, made, _ = template("helm4", f"{settings},{SECRETS}", "--show-only", "templates/chaos-test-case.yaml")
    assert "kind: Job\nmetadata:\n  name: test-chaos-test-case\n" in made
    assert "backoffLimit: 0" in made
    assert "restartPolicy: Never" in made
    assert "command: [tini, --, python3, -m, tiflow.chaos]" in made
    given = dict(re.findall(r"^ +- (--[a-z-]+)=(.*)$", made, re.MULTILINE))
    assert (given["--duration"], given["--jobs"], given["--advertise-host"]) == ("90s", "3", "$(POD_IP)")
    assert given.keys() <= {option for parameter in chaos.cli.params for option in parameter.opts}
    variables = {parameter.envvar for parameter in chaos.cli.params if parameter.envvar}
    assert set(re.findall(r"TIFLOW_[A-Z_]+", made)) == variables

    _, made, _ = template("helm4", "")
    assert "chaos" not in made


@pytest.mark.parametrize("helm", ["helm3", "helm4"])
@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("serverMaster.replicas=2", "replicas"),
        ("serverMster.replicas=3", "serverMster"),
        ("executor.slots=-1", "slots"),
        ("executor.antiAffinity=maybe", "antiAffinity"),
        ("metadata.mysql.storage.size=big", "size"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("chaosTestCase.enabled=true,chaosTestCase.duration=soon", "duration"),
        ("chaosTestCase.workers=0", "workers"),
        ("tls.enabled=true", "tls.executorSecret"),
        ("tls.enabled=true,tls.certManager.enabled=true", "issuerRef.name"),
    ],
)
def test_wrong_values_are_refused_by_the_name_of_the_key(helm: str, settings: str, key: str):
    code, _, told = template(helm, settings)
    assert code != 0
    assert key in told
