"""A follower hands a call to the leader, and says what is known of it when no answer comes."""

from tiflow.master.server import READS
from tiflow.rpc import tiflow_pb2 as pb

#: what each other call may have changed by the time that the answer is lost
WRITES = {
    "AddGroup",
    "CancelJob",
    "CancelTasks",
    "CloseGroups",
    "CreateSchedule",
    "DeleteCheckpoint",
    "DeleteJob",
    "DeleteProject",
    "DeleteSchedule",
    "DrainExecutor",
    "PauseJob",
    "PauseSchedule",
    "PutCheckpoint",
    "RaftTransfer",
    "RerunLost",
    "ResumeJob",
    "ResumeSchedule",
    "SetProject",
    "StartWorkers",
    "StopWorkers",
    "SubmitJob",
    "TriggerSchedule",
    "UndrainExecutor",
}
NOT_FORWARDED = {"RaftSnapshot", "RaftStatus"}


def test_every_call_is_known_to_read_or_may_have_been_done():
    calls = {method.name for method in pb.DESCRIPTOR.services_by_name["Tiflow"].methods}

    assert calls == WRITES | READS | NOT_FORWARDED
    assert not WRITES & READS
