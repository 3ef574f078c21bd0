from tiflow.master.session import BACKLOG_US, OUTBOX_MAX, Session, TaskTimes
from tiflow.rpc import tiflow_pb2 as pb


def test_a_group_that_was_never_measured_gets_no_backlog():
    assert TaskTimes().backlog((1, "main"), 512) == 0


def test_the_backlog_is_about_a_tenth_of_a_second_of_work():
    times = TaskTimes()
    times.measured((1, "main"), tasks=10, run_us=10_000)

    assert BACKLOG_US // 2_000 < times.backlog((1, "main"), 512) == 64 <= BACKLOG_US // 1_000
    times.measured((2, "main"), tasks=1_000, run_us=1)
    assert times.backlog((2, "main"), 512) == 512


def test_a_slow_batch_counts_at_once_and_a_fast_one_slowly():
    times = TaskTimes()
    times.measured((1, "main"), 100, 1_000)
    times.measured((1, "main"), 1, 10_000_000)
    assert times.backlog((1, "main"), 512) == 0

    times.measured((1, "main"), 100, 1_000)
    assert times.backlog((1, "main"), 512) == 0


def test_what_is_on_its_way_differs_once_and_what_was_lost_twice():
    session = Session("u1", 1, term=1)

    assert session.agrees(placed=[1, 2, 3], held=[2, 3, 4])  # 1 has not arrived, 4 has just ended
    assert session.agrees(placed=[1, 2, 3, 5], held=[1, 2, 3])
    assert session.agrees(placed=[1, 2, 6], held=[1, 2])  # 5 came and went, 6 is new
    assert not session.agrees(placed=[1, 6], held=[1, 2])
    assert not session.agrees(placed=[1], held=[1, 2])


async def test_what_is_queued_is_written_in_order_and_the_last_word_too():
    session = Session("u1", 1, term=1)
    session.send(pb.LeaderMessage(events_ack=pb.EventsAck(seq=1)))
    session.send(pb.LeaderMessage(events_ack=pb.EventsAck(seq=2)))
    session.close(pb.LeaderMessage(expired=pb.Expired()))
    session.send(pb.LeaderMessage(events_ack=pb.EventsAck(seq=3)))

    kinds = [message.WhichOneof("body") async for message in session.messages()]

    assert kinds == ["events_ack", "events_ack", "expired"]


async def test_an_executor_that_does_not_read_loses_its_session():
    session = Session("u1", 1, term=1)
    for seq in range(OUTBOX_MAX):
        session.send(pb.LeaderMessage(events_ack=pb.EventsAck(seq=seq)))

    session.send(pb.LeaderMessage())

    assert session.closed
    assert [message async for message in session.messages()] == []
