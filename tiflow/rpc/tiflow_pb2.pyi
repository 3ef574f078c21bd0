from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Command(_message.Message):
    __slots__ = ("argv", "env", "cwd")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ARGV_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    CWD_FIELD_NUMBER: _ClassVar[int]
    argv: _containers.RepeatedScalarFieldContainer[str]
    env: _containers.ScalarMap[str, str]
    cwd: str
    def __init__(self, argv: _Optional[_Iterable[str]] = ..., env: _Optional[_Mapping[str, str]] = ..., cwd: _Optional[str] = ...) -> None: ...

class Python(_message.Message):
    __slots__ = ("function", "path")
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    function: str
    path: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, function: _Optional[str] = ..., path: _Optional[_Iterable[str]] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("functions", "path", "python", "cloudpickle")
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    CLOUDPICKLE_FIELD_NUMBER: _ClassVar[int]
    functions: _containers.RepeatedScalarFieldContainer[bytes]
    path: _containers.RepeatedScalarFieldContainer[str]
    python: str
    cloudpickle: str
    def __init__(self, functions: _Optional[_Iterable[bytes]] = ..., path: _Optional[_Iterable[str]] = ..., python: _Optional[str] = ..., cloudpickle: _Optional[str] = ...) -> None: ...

class Framework(_message.Message):
    __slots__ = ("type", "kind", "config", "path")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    type: str
    kind: str
    config: bytes
    path: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, type: _Optional[str] = ..., kind: _Optional[str] = ..., config: _Optional[bytes] = ..., path: _Optional[_Iterable[str]] = ...) -> None: ...

class Selector(_message.Message):
    __slots__ = ("key", "op", "values")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    key: str
    op: str
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, key: _Optional[str] = ..., op: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class RetryPolicy(_message.Message):
    __slots__ = ("attempts_max", "backoff_ms", "multiplier_milli", "backoff_ms_max", "reset_ms", "final_exit_codes", "final_errors")
    ATTEMPTS_MAX_FIELD_NUMBER: _ClassVar[int]
    BACKOFF_MS_FIELD_NUMBER: _ClassVar[int]
    MULTIPLIER_MILLI_FIELD_NUMBER: _ClassVar[int]
    BACKOFF_MS_MAX_FIELD_NUMBER: _ClassVar[int]
    RESET_MS_FIELD_NUMBER: _ClassVar[int]
    FINAL_EXIT_CODES_FIELD_NUMBER: _ClassVar[int]
    FINAL_ERRORS_FIELD_NUMBER: _ClassVar[int]
    attempts_max: int
    backoff_ms: int
    multiplier_milli: int
    backoff_ms_max: int
    reset_ms: int
    final_exit_codes: _containers.RepeatedScalarFieldContainer[int]
    final_errors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, attempts_max: _Optional[int] = ..., backoff_ms: _Optional[int] = ..., multiplier_milli: _Optional[int] = ..., backoff_ms_max: _Optional[int] = ..., reset_ms: _Optional[int] = ..., final_exit_codes: _Optional[_Iterable[int]] = ..., final_errors: _Optional[_Iterable[str]] = ...) -> None: ...

class PlacementPolicy(_message.Message):
    __slots__ = ("strategy", "spread_over", "max_per_executor")
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    SPREAD_OVER_FIELD_NUMBER: _ClassVar[int]
    MAX_PER_EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    strategy: str
    spread_over: str
    max_per_executor: int
    def __init__(self, strategy: _Optional[str] = ..., spread_over: _Optional[str] = ..., max_per_executor: _Optional[int] = ...) -> None: ...

class After(_message.Message):
    __slots__ = ("group", "on")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ON_FIELD_NUMBER: _ClassVar[int]
    group: str
    on: str
    def __init__(self, group: _Optional[str] = ..., on: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("memory_bytes", "open_files", "output_bytes")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    open_files: int
    output_bytes: int
    def __init__(self, memory_bytes: _Optional[int] = ..., open_files: _Optional[int] = ..., output_bytes: _Optional[int] = ...) -> None: ...

class GroupSpec(_message.Message):
    __slots__ = ("name", "command", "python", "call", "framework", "count", "items", "selectors", "retry", "timeout_ms", "grace_ms", "resources", "placement", "after", "limits")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    FRAMEWORK_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    name: str
    command: Command
    python: Python
    call: Call
    framework: Framework
    count: int
    items: _containers.RepeatedScalarFieldContainer[bytes]
    selectors: _containers.RepeatedCompositeFieldContainer[Selector]
    retry: RetryPolicy
    timeout_ms: int
    grace_ms: int
    resources: _containers.ScalarMap[str, int]
    placement: PlacementPolicy
    after: _containers.RepeatedCompositeFieldContainer[After]
    limits: Limits
    def __init__(self, name: _Optional[str] = ..., command: _Optional[_Union[Command, _Mapping]] = ..., python: _Optional[_Union[Python, _Mapping]] = ..., call: _Optional[_Union[Call, _Mapping]] = ..., framework: _Optional[_Union[Framework, _Mapping]] = ..., count: _Optional[int] = ..., items: _Optional[_Iterable[bytes]] = ..., selectors: _Optional[_Iterable[_Union[Selector, _Mapping]]] = ..., retry: _Optional[_Union[RetryPolicy, _Mapping]] = ..., timeout_ms: _Optional[int] = ..., grace_ms: _Optional[int] = ..., resources: _Optional[_Mapping[str, int]] = ..., placement: _Optional[_Union[PlacementPolicy, _Mapping]] = ..., after: _Optional[_Iterable[_Union[After, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class JobSpec(_message.Message):
    __slots__ = ("id", "groups", "priority", "labels", "retries_max", "max_failures", "job_timeout_ms", "queue_timeout_ms", "project", "open", "client_ttl_ms", "on_lost_result")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    RETRIES_MAX_FIELD_NUMBER: _ClassVar[int]
    MAX_FAILURES_FIELD_NUMBER: _ClassVar[int]
    JOB_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    ON_LOST_RESULT_FIELD_NUMBER: _ClassVar[int]
    id: str
    groups: _containers.RepeatedCompositeFieldContainer[GroupSpec]
    priority: int
    labels: _containers.ScalarMap[str, str]
    retries_max: int
    max_failures: int
    job_timeout_ms: int
    queue_timeout_ms: int
    project: str
    open: bool
    client_ttl_ms: int
    on_lost_result: str
    def __init__(self, id: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[GroupSpec, _Mapping]]] = ..., priority: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., retries_max: _Optional[int] = ..., max_failures: _Optional[int] = ..., job_timeout_ms: _Optional[int] = ..., queue_timeout_ms: _Optional[int] = ..., project: _Optional[str] = ..., open: _Optional[bool] = ..., client_ttl_ms: _Optional[int] = ..., on_lost_result: _Optional[str] = ...) -> None: ...

class GroupProgress(_message.Message):
    __slots__ = ("name", "total", "succeeded", "failed", "canceled", "running", "waiting", "skipped", "cpu_us", "memory_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    CPU_US_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    total: int
    succeeded: int
    failed: int
    canceled: int
    running: int
    waiting: int
    skipped: int
    cpu_us: int
    memory_bytes: int
    def __init__(self, name: _Optional[str] = ..., total: _Optional[int] = ..., succeeded: _Optional[int] = ..., failed: _Optional[int] = ..., canceled: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., skipped: _Optional[int] = ..., cpu_us: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class JobInfo(_message.Message):
    __slots__ = ("id", "uid", "state", "groups", "submitted_at_ms", "started_at_ms", "ended_at_ms", "revision", "result_rows", "type", "waiting", "spec", "project", "error", "dropped", "members")
    ID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    RESULT_ROWS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    uid: int
    state: str
    groups: _containers.RepeatedCompositeFieldContainer[GroupProgress]
    submitted_at_ms: int
    started_at_ms: int
    ended_at_ms: int
    revision: int
    result_rows: int
    type: str
    waiting: _containers.RepeatedScalarFieldContainer[str]
    spec: JobSpec
    project: str
    error: str
    dropped: GroupProgress
    members: _containers.RepeatedCompositeFieldContainer[MemberStatus]
    def __init__(self, id: _Optional[str] = ..., uid: _Optional[int] = ..., state: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[GroupProgress, _Mapping]]] = ..., submitted_at_ms: _Optional[int] = ..., started_at_ms: _Optional[int] = ..., ended_at_ms: _Optional[int] = ..., revision: _Optional[int] = ..., result_rows: _Optional[int] = ..., type: _Optional[str] = ..., waiting: _Optional[_Iterable[str]] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., project: _Optional[str] = ..., error: _Optional[str] = ..., dropped: _Optional[_Union[GroupProgress, _Mapping]] = ..., members: _Optional[_Iterable[_Union[MemberStatus, _Mapping]]] = ...) -> None: ...

class MemberStatus(_message.Message):
    __slots__ = ("name", "state", "attempt", "executor", "status", "error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    attempt: int
    executor: str
    status: bytes
    error: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., attempt: _Optional[int] = ..., executor: _Optional[str] = ..., status: _Optional[bytes] = ..., error: _Optional[str] = ...) -> None: ...

class SubmitJobRequest(_message.Message):
    __slots__ = ("spec", "token", "token_at_ms")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_AT_MS_FIELD_NUMBER: _ClassVar[int]
    spec: JobSpec
    token: str
    token_at_ms: int
    def __init__(self, spec: _Optional[_Union[JobSpec, _Mapping]] = ..., token: _Optional[str] = ..., token_at_ms: _Optional[int] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("limit", "state", "before_uid")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_UID_FIELD_NUMBER: _ClassVar[int]
    limit: int
    state: str
    before_uid: int
    def __init__(self, limit: _Optional[int] = ..., state: _Optional[str] = ..., before_uid: _Optional[int] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "total", "next", "warning")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobInfo]
    total: int
    next: int
    warning: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobInfo, _Mapping]]] = ..., total: _Optional[int] = ..., next: _Optional[int] = ..., warning: _Optional[str] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DeleteJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DeleteJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PauseJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ResumeJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("id", "uid", "from_row", "rows_only")
    ID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    FROM_ROW_FIELD_NUMBER: _ClassVar[int]
    ROWS_ONLY_FIELD_NUMBER: _ClassVar[int]
    id: str
    uid: int
    from_row: int
    rows_only: bool
    def __init__(self, id: _Optional[str] = ..., uid: _Optional[int] = ..., from_row: _Optional[int] = ..., rows_only: _Optional[bool] = ...) -> None: ...

class ResultRow(_message.Message):
    __slots__ = ("row", "group", "start", "stop", "attempt", "executor", "address", "executor_alive", "outcome", "results", "error", "ended_at_ms", "cpu_us", "memory_bytes")
    ROW_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_ALIVE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    CPU_US_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    row: int
    group: str
    start: int
    stop: int
    attempt: int
    executor: str
    address: str
    executor_alive: bool
    outcome: str
    results: bytes
    error: str
    ended_at_ms: int
    cpu_us: int
    memory_bytes: int
    def __init__(self, row: _Optional[int] = ..., group: _Optional[str] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., attempt: _Optional[int] = ..., executor: _Optional[str] = ..., address: _Optional[str] = ..., executor_alive: _Optional[bool] = ..., outcome: _Optional[str] = ..., results: _Optional[bytes] = ..., error: _Optional[str] = ..., ended_at_ms: _Optional[int] = ..., cpu_us: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class GroupPlaced(_message.Message):
    __slots__ = ("group", "cursor")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    group: str
    cursor: int
    def __init__(self, group: _Optional[str] = ..., cursor: _Optional[int] = ...) -> None: ...

class JobUpdate(_message.Message):
    __slots__ = ("job", "rows", "placed")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PLACED_FIELD_NUMBER: _ClassVar[int]
    job: JobInfo
    rows: _containers.RepeatedCompositeFieldContainer[ResultRow]
    placed: _containers.RepeatedCompositeFieldContainer[GroupPlaced]
    def __init__(self, job: _Optional[_Union[JobInfo, _Mapping]] = ..., rows: _Optional[_Iterable[_Union[ResultRow, _Mapping]]] = ..., placed: _Optional[_Iterable[_Union[GroupPlaced, _Mapping]]] = ...) -> None: ...

class AddGroupRequest(_message.Message):
    __slots__ = ("uid", "number", "group", "drop")
    UID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    uid: int
    number: int
    group: GroupSpec
    drop: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uid: _Optional[int] = ..., number: _Optional[int] = ..., group: _Optional[_Union[GroupSpec, _Mapping]] = ..., drop: _Optional[_Iterable[str]] = ...) -> None: ...

class CloseGroupsRequest(_message.Message):
    __slots__ = ("uid",)
    UID_FIELD_NUMBER: _ClassVar[int]
    uid: int
    def __init__(self, uid: _Optional[int] = ...) -> None: ...

class CancelTasksRequest(_message.Message):
    __slots__ = ("uid", "group", "start", "stop", "force")
    UID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    uid: int
    group: str
    start: int
    stop: int
    force: bool
    def __init__(self, uid: _Optional[int] = ..., group: _Optional[str] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., force: _Optional[bool] = ...) -> None: ...

class CancelTasksReply(_message.Message):
    __slots__ = ("canceled",)
    CANCELED_FIELD_NUMBER: _ClassVar[int]
    canceled: _containers.RepeatedCompositeFieldContainer[TaskRange]
    def __init__(self, canceled: _Optional[_Iterable[_Union[TaskRange, _Mapping]]] = ...) -> None: ...

class TaskRange(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class RenewClientRequest(_message.Message):
    __slots__ = ("uid",)
    UID_FIELD_NUMBER: _ClassVar[int]
    uid: int
    def __init__(self, uid: _Optional[int] = ...) -> None: ...

class PoolReply(_message.Message):
    __slots__ = ("state", "error", "kept")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    state: str
    error: str
    kept: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, state: _Optional[str] = ..., error: _Optional[str] = ..., kept: _Optional[_Iterable[str]] = ...) -> None: ...

class StartWorkersRequest(_message.Message):
    __slots__ = ("uid", "attempt", "group", "number", "settled")
    UID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    uid: int
    attempt: int
    group: GroupSpec
    number: int
    settled: int
    def __init__(self, uid: _Optional[int] = ..., attempt: _Optional[int] = ..., group: _Optional[_Union[GroupSpec, _Mapping]] = ..., number: _Optional[int] = ..., settled: _Optional[int] = ...) -> None: ...

class StartWorkersReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopWorkersRequest(_message.Message):
    __slots__ = ("uid", "attempt", "group", "start", "stop", "forget", "number", "settled")
    UID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    uid: int
    attempt: int
    group: str
    start: int
    stop: int
    forget: bool
    number: int
    settled: int
    def __init__(self, uid: _Optional[int] = ..., attempt: _Optional[int] = ..., group: _Optional[str] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., forget: _Optional[bool] = ..., number: _Optional[int] = ..., settled: _Optional[int] = ...) -> None: ...

class StopWorkersReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ("id", "group", "limit", "start")
    ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    id: str
    group: str
    limit: int
    start: int
    def __init__(self, id: _Optional[str] = ..., group: _Optional[str] = ..., limit: _Optional[int] = ..., start: _Optional[int] = ...) -> None: ...

class TaskInfo(_message.Message):
    __slots__ = ("group", "index", "state", "attempt", "executor", "address", "reason", "cpu_us", "memory_bytes")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CPU_US_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    group: str
    index: int
    state: str
    attempt: int
    executor: str
    address: str
    reason: str
    cpu_us: int
    memory_bytes: int
    def __init__(self, group: _Optional[str] = ..., index: _Optional[int] = ..., state: _Optional[str] = ..., attempt: _Optional[int] = ..., executor: _Optional[str] = ..., address: _Optional[str] = ..., reason: _Optional[str] = ..., cpu_us: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[TaskInfo]
    def __init__(self, tasks: _Optional[_Iterable[_Union[TaskInfo, _Mapping]]] = ...) -> None: ...

class ExplainJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("name", "wants", "removes", "leaves")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WANTS_FIELD_NUMBER: _ClassVar[int]
    REMOVES_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    name: str
    wants: str
    removes: int
    leaves: int
    def __init__(self, name: _Optional[str] = ..., wants: _Optional[str] = ..., removes: _Optional[int] = ..., leaves: _Optional[int] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("group", "waiting", "total", "held", "executors", "filters", "candidates", "summary")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    group: str
    waiting: int
    total: int
    held: str
    executors: int
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    candidates: int
    summary: str
    def __init__(self, group: _Optional[str] = ..., waiting: _Optional[int] = ..., total: _Optional[int] = ..., held: _Optional[str] = ..., executors: _Optional[int] = ..., filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ..., candidates: _Optional[int] = ..., summary: _Optional[str] = ...) -> None: ...

class ExplainJobResponse(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[Explanation]
    def __init__(self, groups: _Optional[_Iterable[_Union[Explanation, _Mapping]]] = ...) -> None: ...

class CreateScheduleRequest(_message.Message):
    __slots__ = ("name", "spec", "cron", "timezone", "overlap", "missed", "keep", "paused", "token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    CRON_FIELD_NUMBER: _ClassVar[int]
    TIMEZONE_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: JobSpec
    cron: str
    timezone: str
    overlap: str
    missed: str
    keep: int
    paused: bool
    token: str
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., cron: _Optional[str] = ..., timezone: _Optional[str] = ..., overlap: _Optional[str] = ..., missed: _Optional[str] = ..., keep: _Optional[int] = ..., paused: _Optional[bool] = ..., token: _Optional[str] = ...) -> None: ...

class GetScheduleRequest(_message.Message):
    __slots__ = ("name", "times")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    name: str
    times: int
    def __init__(self, name: _Optional[str] = ..., times: _Optional[int] = ...) -> None: ...

class ListSchedulesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PauseScheduleRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ResumeScheduleRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteScheduleRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteScheduleResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TriggerScheduleRequest(_message.Message):
    __slots__ = ("name", "token", "token_at_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_AT_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    token: str
    token_at_ms: int
    def __init__(self, name: _Optional[str] = ..., token: _Optional[str] = ..., token_at_ms: _Optional[int] = ...) -> None: ...

class ScheduleRun(_message.Message):
    __slots__ = ("id", "state", "submitted_at_ms", "ended_at_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: str
    submitted_at_ms: int
    ended_at_ms: int
    def __init__(self, id: _Optional[str] = ..., state: _Optional[str] = ..., submitted_at_ms: _Optional[int] = ..., ended_at_ms: _Optional[int] = ...) -> None: ...

class ScheduleInfo(_message.Message):
    __slots__ = ("name", "cron", "timezone", "overlap", "missed", "keep", "paused", "next_at_ms", "last_at_ms", "note", "created_at_ms", "runs", "times_ms", "spec")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CRON_FIELD_NUMBER: _ClassVar[int]
    TIMEZONE_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    NEXT_AT_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_AT_MS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    TIMES_MS_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    name: str
    cron: str
    timezone: str
    overlap: str
    missed: str
    keep: int
    paused: bool
    next_at_ms: int
    last_at_ms: int
    note: str
    created_at_ms: int
    runs: _containers.RepeatedCompositeFieldContainer[ScheduleRun]
    times_ms: _containers.RepeatedScalarFieldContainer[int]
    spec: JobSpec
    def __init__(self, name: _Optional[str] = ..., cron: _Optional[str] = ..., timezone: _Optional[str] = ..., overlap: _Optional[str] = ..., missed: _Optional[str] = ..., keep: _Optional[int] = ..., paused: _Optional[bool] = ..., next_at_ms: _Optional[int] = ..., last_at_ms: _Optional[int] = ..., note: _Optional[str] = ..., created_at_ms: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[ScheduleRun, _Mapping]]] = ..., times_ms: _Optional[_Iterable[int]] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ...) -> None: ...

class ListSchedulesResponse(_message.Message):
    __slots__ = ("schedules",)
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    schedules: _containers.RepeatedCompositeFieldContainer[ScheduleInfo]
    def __init__(self, schedules: _Optional[_Iterable[_Union[ScheduleInfo, _Mapping]]] = ...) -> None: ...

class SetProjectRequest(_message.Message):
    __slots__ = ("name", "slots_max", "tasks_max", "jobs_max", "weight")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SLOTS_MAX_FIELD_NUMBER: _ClassVar[int]
    TASKS_MAX_FIELD_NUMBER: _ClassVar[int]
    JOBS_MAX_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    name: str
    slots_max: int
    tasks_max: int
    jobs_max: int
    weight: int
    def __init__(self, name: _Optional[str] = ..., slots_max: _Optional[int] = ..., tasks_max: _Optional[int] = ..., jobs_max: _Optional[int] = ..., weight: _Optional[int] = ...) -> None: ...

class ListProjectsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeleteProjectRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteProjectResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProjectInfo(_message.Message):
    __slots__ = ("name", "slots_max", "tasks_max", "jobs_max", "weight", "running", "waiting", "jobs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SLOTS_MAX_FIELD_NUMBER: _ClassVar[int]
    TASKS_MAX_FIELD_NUMBER: _ClassVar[int]
    JOBS_MAX_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    name: str
    slots_max: int
    tasks_max: int
    jobs_max: int
    weight: int
    running: int
    waiting: int
    jobs: int
    def __init__(self, name: _Optional[str] = ..., slots_max: _Optional[int] = ..., tasks_max: _Optional[int] = ..., jobs_max: _Optional[int] = ..., weight: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., jobs: _Optional[int] = ...) -> None: ...

class ListProjectsResponse(_message.Message):
    __slots__ = ("projects",)
    PROJECTS_FIELD_NUMBER: _ClassVar[int]
    projects: _containers.RepeatedCompositeFieldContainer[ProjectInfo]
    def __init__(self, projects: _Optional[_Iterable[_Union[ProjectInfo, _Mapping]]] = ...) -> None: ...

class RerunLostRequest(_message.Message):
    __slots__ = ("id", "uid", "row", "index", "missing")
    ID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    id: str
    uid: int
    row: int
    index: int
    missing: bool
    def __init__(self, id: _Optional[str] = ..., uid: _Optional[int] = ..., row: _Optional[int] = ..., index: _Optional[int] = ..., missing: _Optional[bool] = ...) -> None: ...

class ListExecutorsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainExecutorRequest(_message.Message):
    __slots__ = ("name", "deadline_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    deadline_ms: int
    def __init__(self, name: _Optional[str] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class UndrainExecutorRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ExecutorInfo(_message.Message):
    __slots__ = ("uid", "name", "address", "slots", "incarnation", "labels", "state", "running", "registered_at_ms", "version", "connected", "capacity", "drain", "drain_left_ms", "unhealthy")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class CapacityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    UID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    DRAIN_LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    UNHEALTHY_FIELD_NUMBER: _ClassVar[int]
    uid: str
    name: str
    address: str
    slots: int
    incarnation: int
    labels: _containers.ScalarMap[str, str]
    state: str
    running: int
    registered_at_ms: int
    version: str
    connected: bool
    capacity: _containers.ScalarMap[str, int]
    drain: bool
    drain_left_ms: int
    unhealthy: str
    def __init__(self, uid: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., slots: _Optional[int] = ..., incarnation: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., state: _Optional[str] = ..., running: _Optional[int] = ..., registered_at_ms: _Optional[int] = ..., version: _Optional[str] = ..., connected: _Optional[bool] = ..., capacity: _Optional[_Mapping[str, int]] = ..., drain: _Optional[bool] = ..., drain_left_ms: _Optional[int] = ..., unhealthy: _Optional[str] = ...) -> None: ...

class ListExecutorsResponse(_message.Message):
    __slots__ = ("executors",)
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    executors: _containers.RepeatedCompositeFieldContainer[ExecutorInfo]
    def __init__(self, executors: _Optional[_Iterable[_Union[ExecutorInfo, _Mapping]]] = ...) -> None: ...

class RaftStatusRequest(_message.Message):
    __slots__ = ("all",)
    ALL_FIELD_NUMBER: _ClassVar[int]
    all: bool
    def __init__(self, all: _Optional[bool] = ...) -> None: ...

class RaftPeer(_message.Message):
    __slots__ = ("name", "match_index", "lag", "connected", "last_contact_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MATCH_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    LAST_CONTACT_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    match_index: int
    lag: int
    connected: bool
    last_contact_ms: int
    def __init__(self, name: _Optional[str] = ..., match_index: _Optional[int] = ..., lag: _Optional[int] = ..., connected: _Optional[bool] = ..., last_contact_ms: _Optional[int] = ...) -> None: ...

class MasterStatus(_message.Message):
    __slots__ = ("name", "address", "cluster_id", "role", "term", "leader", "commit_index", "applied_index", "last_index", "first_index", "durable_index", "log_bytes", "snapshot_index", "snapshot_age_s", "peers", "error", "version", "http_address", "pid", "learner", "disk", "disk_free_bytes", "disk_reserve_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    DURABLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_AGE_S_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HTTP_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    LEARNER_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_RESERVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    cluster_id: str
    role: str
    term: int
    leader: str
    commit_index: int
    applied_index: int
    last_index: int
    first_index: int
    durable_index: int
    log_bytes: int
    snapshot_index: int
    snapshot_age_s: float
    peers: _containers.RepeatedCompositeFieldContainer[RaftPeer]
    error: str
    version: str
    http_address: str
    pid: int
    learner: bool
    disk: str
    disk_free_bytes: int
    disk_reserve_bytes: int
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., cluster_id: _Optional[str] = ..., role: _Optional[str] = ..., term: _Optional[int] = ..., leader: _Optional[str] = ..., commit_index: _Optional[int] = ..., applied_index: _Optional[int] = ..., last_index: _Optional[int] = ..., first_index: _Optional[int] = ..., durable_index: _Optional[int] = ..., log_bytes: _Optional[int] = ..., snapshot_index: _Optional[int] = ..., snapshot_age_s: _Optional[float] = ..., peers: _Optional[_Iterable[_Union[RaftPeer, _Mapping]]] = ..., error: _Optional[str] = ..., version: _Optional[str] = ..., http_address: _Optional[str] = ..., pid: _Optional[int] = ..., learner: _Optional[bool] = ..., disk: _Optional[str] = ..., disk_free_bytes: _Optional[int] = ..., disk_reserve_bytes: _Optional[int] = ...) -> None: ...

class RaftStatusResponse(_message.Message):
    __slots__ = ("masters",)
    MASTERS_FIELD_NUMBER: _ClassVar[int]
    masters: _containers.RepeatedCompositeFieldContainer[MasterStatus]
    def __init__(self, masters: _Optional[_Iterable[_Union[MasterStatus, _Mapping]]] = ...) -> None: ...

class RaftTransferRequest(_message.Message):
    __slots__ = ("to",)
    TO_FIELD_NUMBER: _ClassVar[int]
    to: str
    def __init__(self, to: _Optional[str] = ...) -> None: ...

class RaftTransferResponse(_message.Message):
    __slots__ = ("leader", "term")
    LEADER_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    leader: str
    term: int
    def __init__(self, leader: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...

class RaftSnapshotRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RaftSnapshotResponse(_message.Message):
    __slots__ = ("name", "index")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    name: str
    index: int
    def __init__(self, name: _Optional[str] = ..., index: _Optional[int] = ...) -> None: ...

class JobEventsRequest(_message.Message):
    __slots__ = ("id", "after_revision", "after_seq", "limit")
    ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    id: str
    after_revision: int
    after_seq: int
    limit: int
    def __init__(self, id: _Optional[str] = ..., after_revision: _Optional[int] = ..., after_seq: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class JobEvent(_message.Message):
    __slots__ = ("revision", "seq", "at_ms", "kind", "message", "by")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    revision: int
    seq: int
    at_ms: int
    kind: str
    message: str
    by: str
    def __init__(self, revision: _Optional[int] = ..., seq: _Optional[int] = ..., at_ms: _Optional[int] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class JobEventsResponse(_message.Message):
    __slots__ = ("events", "warning")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[JobEvent]
    warning: str
    def __init__(self, events: _Optional[_Iterable[_Union[JobEvent, _Mapping]]] = ..., warning: _Optional[str] = ...) -> None: ...

class ClusterStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MetadataStatus(_message.Message):
    __slots__ = ("state", "url", "revision", "behind", "error", "note")
    STATE_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    state: str
    url: str
    revision: int
    behind: int
    error: str
    note: str
    def __init__(self, state: _Optional[str] = ..., url: _Optional[str] = ..., revision: _Optional[int] = ..., behind: _Optional[int] = ..., error: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class ClusterStatusResponse(_message.Message):
    __slots__ = ("masters", "metadata", "jobs", "executors", "pruned", "revision", "format", "cluster_id")
    class JobsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ExecutorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MASTERS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    PRUNED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    masters: _containers.RepeatedCompositeFieldContainer[MasterStatus]
    metadata: MetadataStatus
    jobs: _containers.ScalarMap[str, int]
    executors: _containers.ScalarMap[str, int]
    pruned: int
    revision: int
    format: int
    cluster_id: str
    def __init__(self, masters: _Optional[_Iterable[_Union[MasterStatus, _Mapping]]] = ..., metadata: _Optional[_Union[MetadataStatus, _Mapping]] = ..., jobs: _Optional[_Mapping[str, int]] = ..., executors: _Optional[_Mapping[str, int]] = ..., pruned: _Optional[int] = ..., revision: _Optional[int] = ..., format: _Optional[int] = ..., cluster_id: _Optional[str] = ...) -> None: ...

class BackupClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Holder(_message.Message):
    __slots__ = ("job_id", "uid", "name", "attempt")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    uid: int
    name: str
    attempt: int
    def __init__(self, job_id: _Optional[str] = ..., uid: _Optional[int] = ..., name: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class PutCheckpointRequest(_message.Message):
    __slots__ = ("holder", "key", "value")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    holder: Holder
    key: str
    value: bytes
    def __init__(self, holder: _Optional[_Union[Holder, _Mapping]] = ..., key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class PutCheckpointResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCheckpointRequest(_message.Message):
    __slots__ = ("holder", "key")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    holder: Holder
    key: str
    def __init__(self, holder: _Optional[_Union[Holder, _Mapping]] = ..., key: _Optional[str] = ...) -> None: ...

class GetCheckpointResponse(_message.Message):
    __slots__ = ("found", "value", "attempt", "updated_at_ms")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    found: bool
    value: bytes
    attempt: int
    updated_at_ms: int
    def __init__(self, found: _Optional[bool] = ..., value: _Optional[bytes] = ..., attempt: _Optional[int] = ..., updated_at_ms: _Optional[int] = ...) -> None: ...

class DeleteCheckpointRequest(_message.Message):
    __slots__ = ("holder", "key")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    holder: Holder
    key: str
    def __init__(self, holder: _Optional[_Union[Holder, _Mapping]] = ..., key: _Optional[str] = ...) -> None: ...

class DeleteCheckpointResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("holder", "prefix", "after", "limit")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    holder: Holder
    prefix: str
    after: str
    limit: int
    def __init__(self, holder: _Optional[_Union[Holder, _Mapping]] = ..., prefix: _Optional[str] = ..., after: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class CheckpointInfo(_message.Message):
    __slots__ = ("key", "size", "attempt", "updated_at_ms")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    key: str
    size: int
    attempt: int
    updated_at_ms: int
    def __init__(self, key: _Optional[str] = ..., size: _Optional[int] = ..., attempt: _Optional[int] = ..., updated_at_ms: _Optional[int] = ...) -> None: ...

class ListCheckpointsResponse(_message.Message):
    __slots__ = ("checkpoints",)
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[CheckpointInfo]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[CheckpointInfo, _Mapping]]] = ...) -> None: ...

class ExecutorMessage(_message.Message):
    __slots__ = ("hello", "heartbeat", "events", "goodbye", "draining", "kept", "held", "report")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    events: Events
    goodbye: Goodbye
    draining: Draining
    kept: Kept
    held: Held
    report: Report
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., events: _Optional[_Union[Events, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., kept: _Optional[_Union[Kept, _Mapping]] = ..., held: _Optional[_Union[Held, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("uid", "boot_id", "incarnation", "name", "address", "slots", "labels", "version", "held", "cluster_id", "gone", "draining", "capacity")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class CapacityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    UID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    uid: str
    boot_id: str
    incarnation: int
    name: str
    address: str
    slots: int
    labels: _containers.ScalarMap[str, str]
    version: str
    held: _containers.RepeatedScalarFieldContainer[int]
    cluster_id: str
    gone: bool
    draining: bool
    capacity: _containers.ScalarMap[str, int]
    def __init__(self, uid: _Optional[str] = ..., boot_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., slots: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., version: _Optional[str] = ..., held: _Optional[_Iterable[int]] = ..., cluster_id: _Optional[str] = ..., gone: _Optional[bool] = ..., draining: _Optional[bool] = ..., capacity: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("seq", "unhealthy")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    UNHEALTHY_FIELD_NUMBER: _ClassVar[int]
    seq: int
    unhealthy: str
    def __init__(self, seq: _Optional[int] = ..., unhealthy: _Optional[str] = ...) -> None: ...

class TaskEvent(_message.Message):
    __slots__ = ("placement", "start", "stop", "kind", "results", "error", "exit_code", "final", "run_us", "cpu_us", "memory_bytes")
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    RUN_US_FIELD_NUMBER: _ClassVar[int]
    CPU_US_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    placement: int
    start: int
    stop: int
    kind: str
    results: bytes
    error: str
    exit_code: int
    final: bool
    run_us: int
    cpu_us: int
    memory_bytes: int
    def __init__(self, placement: _Optional[int] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., kind: _Optional[str] = ..., results: _Optional[bytes] = ..., error: _Optional[str] = ..., exit_code: _Optional[int] = ..., final: _Optional[bool] = ..., run_us: _Optional[int] = ..., cpu_us: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Events(_message.Message):
    __slots__ = ("seq", "events")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    events: _containers.RepeatedCompositeFieldContainer[TaskEvent]
    def __init__(self, seq: _Optional[int] = ..., events: _Optional[_Iterable[_Union[TaskEvent, _Mapping]]] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Draining(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Held(_message.Message):
    __slots__ = ("placements",)
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    placements: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, placements: _Optional[_Iterable[int]] = ...) -> None: ...

class Kept(_message.Message):
    __slots__ = ("job_uids",)
    JOB_UIDS_FIELD_NUMBER: _ClassVar[int]
    job_uids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, job_uids: _Optional[_Iterable[int]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("placement", "index", "status", "samples")
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    placement: int
    index: int
    status: bytes
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    def __init__(self, placement: _Optional[int] = ..., index: _Optional[int] = ..., status: _Optional[bytes] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("name", "value", "labels", "kind")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    labels: _containers.ScalarMap[str, str]
    kind: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., labels: _Optional[_Mapping[str, str]] = ..., kind: _Optional[str] = ...) -> None: ...

class LeaderMessage(_message.Message):
    __slots__ = ("welcome", "assignments", "revoke", "events_ack", "lease_grant", "expired", "redirect", "refused", "deleted", "members")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    REVOKE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_ACK_FIELD_NUMBER: _ClassVar[int]
    LEASE_GRANT_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    assignments: Assignments
    revoke: Revoke
    events_ack: EventsAck
    lease_grant: LeaseGrant
    expired: Expired
    redirect: Redirect
    refused: Refused
    deleted: Deleted
    members: Members
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., assignments: _Optional[_Union[Assignments, _Mapping]] = ..., revoke: _Optional[_Union[Revoke, _Mapping]] = ..., events_ack: _Optional[_Union[EventsAck, _Mapping]] = ..., lease_grant: _Optional[_Union[LeaseGrant, _Mapping]] = ..., expired: _Optional[_Union[Expired, _Mapping]] = ..., redirect: _Optional[_Union[Redirect, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., deleted: _Optional[_Union[Deleted, _Mapping]] = ..., members: _Optional[_Union[Members, _Mapping]] = ...) -> None: ...

class Members(_message.Message):
    __slots__ = ("job_uid", "whole", "members", "placement", "term", "more")
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    job_uid: int
    whole: bool
    members: _containers.RepeatedCompositeFieldContainer[Member]
    placement: int
    term: int
    more: bool
    def __init__(self, job_uid: _Optional[int] = ..., whole: _Optional[bool] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., placement: _Optional[int] = ..., term: _Optional[int] = ..., more: _Optional[bool] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("name", "kind", "state", "attempt", "failures", "losses", "executor", "address", "error", "status", "result", "last_end")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    LAST_END_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    state: str
    attempt: int
    failures: int
    losses: int
    executor: str
    address: str
    error: str
    status: bytes
    result: bytes
    last_end: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., state: _Optional[str] = ..., attempt: _Optional[int] = ..., failures: _Optional[int] = ..., losses: _Optional[int] = ..., executor: _Optional[str] = ..., address: _Optional[str] = ..., error: _Optional[str] = ..., status: _Optional[bytes] = ..., result: _Optional[bytes] = ..., last_end: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("cluster_id", "incarnation", "term", "ttl_ms", "keepalive_ms", "masters", "unknown", "replaces")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_MS_FIELD_NUMBER: _ClassVar[int]
    MASTERS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    incarnation: int
    term: int
    ttl_ms: int
    keepalive_ms: int
    masters: _containers.RepeatedScalarFieldContainer[str]
    unknown: _containers.RepeatedScalarFieldContainer[int]
    replaces: str
    def __init__(self, cluster_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., term: _Optional[int] = ..., ttl_ms: _Optional[int] = ..., keepalive_ms: _Optional[int] = ..., masters: _Optional[_Iterable[str]] = ..., unknown: _Optional[_Iterable[int]] = ..., replaces: _Optional[str] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("placement", "job_id", "job_uid", "group", "start", "stop", "attempt", "items", "command", "python", "call", "framework", "timeout_ms", "grace_ms", "left", "limits", "count")
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    FRAMEWORK_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    placement: int
    job_id: str
    job_uid: int
    group: str
    start: int
    stop: int
    attempt: int
    items: bytes
    command: Command
    python: Python
    call: Call
    framework: Framework
    timeout_ms: int
    grace_ms: int
    left: bytes
    limits: Limits
    count: int
    def __init__(self, placement: _Optional[int] = ..., job_id: _Optional[str] = ..., job_uid: _Optional[int] = ..., group: _Optional[str] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., attempt: _Optional[int] = ..., items: _Optional[bytes] = ..., command: _Optional[_Union[Command, _Mapping]] = ..., python: _Optional[_Union[Python, _Mapping]] = ..., call: _Optional[_Union[Call, _Mapping]] = ..., framework: _Optional[_Union[Framework, _Mapping]] = ..., timeout_ms: _Optional[int] = ..., grace_ms: _Optional[int] = ..., left: _Optional[bytes] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., count: _Optional[int] = ...) -> None: ...

class Assignments(_message.Message):
    __slots__ = ("term", "assignments")
    TERM_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    term: int
    assignments: _containers.RepeatedCompositeFieldContainer[Assignment]
    def __init__(self, term: _Optional[int] = ..., assignments: _Optional[_Iterable[_Union[Assignment, _Mapping]]] = ...) -> None: ...

class Revoke(_message.Message):
    __slots__ = ("term", "placements", "tasks", "reason")
    TERM_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    term: int
    placements: _containers.RepeatedScalarFieldContainer[int]
    tasks: _containers.RepeatedCompositeFieldContainer[RevokedTasks]
    reason: str
    def __init__(self, term: _Optional[int] = ..., placements: _Optional[_Iterable[int]] = ..., tasks: _Optional[_Iterable[_Union[RevokedTasks, _Mapping]]] = ..., reason: _Optional[str] = ...) -> None: ...

class RevokedTasks(_message.Message):
    __slots__ = ("placement", "ranges")
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    placement: int
    ranges: _containers.RepeatedCompositeFieldContainer[TaskRange]
    def __init__(self, placement: _Optional[int] = ..., ranges: _Optional[_Iterable[_Union[TaskRange, _Mapping]]] = ...) -> None: ...

class EventsAck(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class LeaseGrant(_message.Message):
    __slots__ = ("seq", "term")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    seq: int
    term: int
    def __init__(self, seq: _Optional[int] = ..., term: _Optional[int] = ...) -> None: ...

class Deleted(_message.Message):
    __slots__ = ("job_uids", "groups")
    JOB_UIDS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    job_uids: _containers.RepeatedScalarFieldContainer[int]
    groups: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_uids: _Optional[_Iterable[int]] = ..., groups: _Optional[_Iterable[str]] = ...) -> None: ...

class Expired(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Redirect(_message.Message):
    __slots__ = ("leader",)
    LEADER_FIELD_NUMBER: _ClassVar[int]
    leader: str
    def __init__(self, leader: _Optional[str] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("code", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: str
    reason: str
    def __init__(self, code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("job_uid", "group", "index", "attempt")
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    job_uid: int
    group: str
    index: int
    attempt: int
    def __init__(self, job_uid: _Optional[int] = ..., group: _Optional[str] = ..., index: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("job_uid", "group", "index", "attempt", "follow", "stream", "tail_bytes", "since_ms")
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TAIL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    job_uid: int
    group: str
    index: int
    attempt: int
    follow: bool
    stream: str
    tail_bytes: int
    since_ms: int
    def __init__(self, job_uid: _Optional[int] = ..., group: _Optional[str] = ..., index: _Optional[int] = ..., attempt: _Optional[int] = ..., follow: _Optional[bool] = ..., stream: _Optional[str] = ..., tail_bytes: _Optional[int] = ..., since_ms: _Optional[int] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("stream", "data", "attempt")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    stream: str
    data: bytes
    attempt: int
    def __init__(self, stream: _Optional[str] = ..., data: _Optional[bytes] = ..., attempt: _Optional[int] = ...) -> None: ...

class DeliverRequest(_message.Message):
    __slots__ = ("job_uid", "sender", "attempt", "to", "first", "messages")
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    job_uid: int
    sender: str
    attempt: int
    to: str
    first: int
    messages: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, job_uid: _Optional[int] = ..., sender: _Optional[str] = ..., attempt: _Optional[int] = ..., to: _Optional[str] = ..., first: _Optional[int] = ..., messages: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DeliverReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AskMemberRequest(_message.Message):
    __slots__ = ("job_uid", "to", "method", "path", "query", "headers", "body")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    job_uid: int
    to: str
    method: str
    path: str
    query: str
    headers: _containers.ScalarMap[str, str]
    body: bytes
    def __init__(self, job_uid: _Optional[int] = ..., to: _Optional[str] = ..., method: _Optional[str] = ..., path: _Optional[str] = ..., query: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ..., body: _Optional[bytes] = ...) -> None: ...

class AskMemberReply(_message.Message):
    __slots__ = ("status", "headers", "body")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    status: int
    headers: _containers.ScalarMap[str, str]
    body: bytes
    def __init__(self, status: _Optional[int] = ..., headers: _Optional[_Mapping[str, str]] = ..., body: _Optional[bytes] = ...) -> None: ...
