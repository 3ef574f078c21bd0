import pytest

from tiflow.raft import raft_pb2 as pb
from tiflow.raft.library import AUDITED_VERSION, check_library
from tiflow.raft.transport import PROTOCOL, Greeting, refusal

OURS = Greeting("c1", "m1", ("m1=h:1", "m2=h:2"), False, 3)


def test_refuses_a_library_that_was_not_audited(tmp_path):
    source = tmp_path / "syncobj.py"
    source.write_text("class SyncObj: ...")

    with pytest.raises(ImportError, match="overrides private methods"):
        check_library(AUDITED_VERSION, source)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"cluster_id": "c2"}, "m2 is of cluster c2, m1 of cluster c1"),
        ({"members": ["m1=h:1", "m2=h:9"]}, "m2 has the peers m1=h:1, m2=h:9; m1 has m1=h:1, m2=h:2"),
        ({"name": "m1"}, "two members call themselves m1"),
    ],
)
def test_refuses_who_does_not_belong(changed, says):
    hello = {"protocol": PROTOCOL, "cluster_id": "c1", "name": "m2", "members": list(OURS.members)} | changed

    assert says in refusal(OURS, pb.Hello(**hello))


def test_welcomes_a_member_and_one_that_has_no_cluster_yet():
    for cluster_id in ("c1", ""):
        hello = pb.Hello(protocol=PROTOCOL, cluster_id=cluster_id, name="m2", members=OURS.members)
        assert refusal(OURS, hello) is None
