from random import Random

import pytest
from msgspec import Struct

from tiflow.errors import FailedPrecondition
from tiflow.raft.identity import Identity, form, load_identity, save_identity

MEMBERS = ("m1", "m2", "m3")


class Said(Struct):
    cluster_id: str = ""
    fresh: bool = True
    term: int = 0
    origin: str = ""


def identity_of(name, **heard):
    return form(name, MEMBERS, heard, Random(1))


def test_the_first_draws_the_id_when_all_are_present_and_empty():
    identity = identity_of("m1", m2=Said(), m3=Said())

    assert identity.cluster_id
    assert identity.may_vote
    assert identity_of("m2", m1=Said(), m3=Said()) is None


def test_nobody_draws_an_id_while_somebody_is_missing():
    assert identity_of("m1", m2=Said()) is None


def test_nobody_draws_an_id_when_somebody_was_in_a_cluster_before():
    assert identity_of("m1", m2=Said(), m3=Said(fresh=False, term=4)) is None


def test_the_others_adopt_the_id_and_vote_while_the_cluster_is_untouched():
    identity = identity_of("m2", m1=Said("c"), m3=Said())

    assert (identity.cluster_id, identity.may_vote) == ("c", True)


def test_who_comes_back_empty_does_not_vote_nor_go_below_the_others_term():
    identity = identity_of("m2", m1=Said("c", fresh=False, term=5), m3=Said("c", fresh=False, term=8))

    assert (identity.may_vote, identity.term_floor) == (False, 8)


def test_who_comes_back_empty_waits_for_all_others():
    assert identity_of("m2", m1=Said("c", fresh=False, term=5)) is None


def test_an_identity_survives_a_restart(tmp_path):
    identity = Identity(cluster_id="c", name="m1", members=MEMBERS, may_vote=False, term_floor=3)

    save_identity(tmp_path, identity)

    assert load_identity(tmp_path, name="m1", members=MEMBERS) == identity


@pytest.mark.parametrize(
    ("name", "members", "says"),
    [
        ("m2", MEMBERS, "belongs to master m1, this one is m2"),
        ("m1", ("m1",), r"with the members m1, m2, m3, but the configuration says as a lone master \(m1\)"),
    ],
)
def test_refuses_the_directory_of_another(tmp_path, name, members, says):
    save_identity(tmp_path, Identity(cluster_id="c", name="m1", members=MEMBERS))

    with pytest.raises(FailedPrecondition, match=says):
        load_identity(tmp_path, name=name, members=members)


def test_refuses_an_unreadable_identity(tmp_path):
    (tmp_path / "identity.json").write_text("{")

    with pytest.raises(FailedPrecondition, match=r"identity\.json"):
        load_identity(tmp_path, name="m1", members=MEMBERS)
