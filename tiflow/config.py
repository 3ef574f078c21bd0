"""Settings: a TOML file, then the command line over it. Unknown keys and bad values are refused by name."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tiflow.errors import FailedPrecondition, InvalidArgument
from tiflow.jobs.shared import check_url
from tiflow.sched.model import ATTEMPTS_MAX, ID_CHARS, TYPE_CHARS_MAX, RetryPolicy
from tiflow.timings import check_timings, timings, worst_election_ms
from tiflow.toml import Where, check_keys, read_toml, type_error
from tiflow.values import (
    ID_WORDS,
    check_label,
    format_address,
    is_loopback,
    is_wildcard,
    normal_address,
    parse_address,
    parse_addresses,
    parse_bytes,
    parse_duration_ms,
    parse_labels,
    parse_pairs,
    parse_resources,
    show,
    show_bytes,
    split_commas,
)

__all__ = [
    "BackoffConfig",
    "ExecutorConfig",
    "LimitsConfig",
    "LogConfig",
    "MasterConfig",
    "MetadataConfig",
    "RaftSettings",
    "ResultsConfig",
    "RetentionConfig",
    "SecurityConfig",
    "WorkerConfig",
    "check_executor",
    "check_master",
    "format_address",
    "load_executor",
    "load_master",
    "metadata_warning",
    "parse_address",
    "parse_addresses",
    "parse_duration_ms",
    "prepare_data_dir",
    "timings",
    "worst_election_ms",
]


class SecurityConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    ca_path: str = ""  #: PEM: whose signature is trusted; with cert-path and key-path: mutual TLS on all ports
    cert_path: str = ""  #: PEM: the own certificate, and those between it and the CA
    key_path: str = ""  #: PEM: its key
    cert_allowed_cn: tuple[str, ...] = ()  #: common names of those who are served; empty: all that the CA has signed
    insecure: bool = False  #: serve other than loopback without certificates; logged as a warning


class LogConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    level: str = "info"  #: debug, info, warning, error
    file: str = ""  #: empty: stderr


class RaftSettings(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    peers: tuple[
        str, ...
    ] = ()  #: host:port of every master, the own advertise-addr among them; empty: a single master
    heartbeat: str = "100ms"
    election_timeout_min: str = "500ms"
    election_timeout_max: str = "1s"
    leader_fallback: str = "1s"
    snapshot_entries: int = 50_000
    disk_reserve_bytes: int = (
        64 << 20
    )  #: free space below which this master takes no commands and gives the lead away

    @property
    def heartbeat_ms(self) -> int:
        return parse_duration_ms(self.heartbeat, "raft.heartbeat")

    @property
    def election_timeout_min_ms(self) -> int:
        return parse_duration_ms(self.election_timeout_min, "raft.election-timeout-min")

    @property
    def election_timeout_max_ms(self) -> int:
        return parse_duration_ms(self.election_timeout_max, "raft.election-timeout-max")

    @property
    def leader_fallback_ms(self) -> int:
        return parse_duration_ms(self.leader_fallback, "raft.leader-fallback")


class ResultsConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    store: str = ""  #: fsspec URL for results above 256 bytes, one per cluster; empty: the executor keeps them


class MetadataConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    url: str = ""  #: SQLAlchemy URL; empty: SQLite under data-dir
    retention: str = "7d"  #: how long jobs that have ended stay with the masters; then the database alone has them

    @property
    def retention_ms(self) -> int:
        return parse_duration_ms(self.retention, "metadata.retention", 0, RETENTION_MS_MAX)


class BackoffConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """How failed tasks are tried again, unless their job says otherwise."""

    initial_interval: str = "1s"  #: between the first failure and the second try
    multiplier: float = 1.2  #: each further pause is so many times longer
    max_interval: str = "5m"  #: but no longer than this
    max_try_time: int = 3  #: tries of a task, the first one among them
    reset_interval: str = "0s"  #: a try that ran so long before it failed makes the count start over; 0s: none does

    def policy(self) -> RetryPolicy:
        return RetryPolicy(
            attempts_max=self.max_try_time,
            backoff_ms=parse_duration_ms(self.initial_interval, "job-backoff.initial-interval", 0, 3_600_000),
            multiplier_milli=round(self.multiplier * 1_000),
            backoff_ms_max=parse_duration_ms(self.max_interval, "job-backoff.max-interval", 0, 86_400_000),
            reset_ms=parse_duration_ms(self.reset_interval, "job-backoff.reset-interval", 0, 30 * 86_400_000),
        )


class MasterConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    name: str = ""  #: identity among the masters; empty: the advertise address
    addr: str = "127.0.0.1:10240"
    advertise_addr: str = ""  #: empty: addr, if that can be dialled
    http_addr: str = "127.0.0.1:10250"  #: empty: none
    data_dir: str = "./data/master"
    keepalive_ttl: str = "5s"
    keepalive_interval: str = "500ms"
    raft: RaftSettings = RaftSettings()
    job_backoff: BackoffConfig = BackoffConfig()
    metadata: MetadataConfig = MetadataConfig()
    security: SecurityConfig = SecurityConfig()
    log: LogConfig = LogConfig()

    @property
    def keepalive_ttl_ms(self) -> int:
        return parse_duration_ms(self.keepalive_ttl, "keepalive-ttl")

    @property
    def keepalive_interval_ms(self) -> int:
        return parse_duration_ms(self.keepalive_interval, "keepalive-interval")


class WorkerConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """The warm processes that run `python` tasks, one per slot."""

    preload: tuple[str, ...] = ()  #: modules that each worker imports before its first task
    tasks_max: int = 100_000  #: then a fresh one takes over; 0: never
    growth_max: str = "512MiB"  #: of its resident memory since its first batch; then likewise

    @property
    def growth_bytes_max(self) -> int:
        return parse_bytes(self.growth_max, "worker.growth-max")


class RetentionConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """How long logs stay. Results stay until their job is deleted."""

    logs_age: str = "168h"  #: since the job wrote something
    logs_size: str = "10GiB"  #: of all logs; the jobs whose newest log is oldest go first
    disk_reserve: str = "64MiB"  #: with less room than this an executor takes no new tasks

    @property
    def logs_age_s(self) -> float:
        return parse_duration_ms(self.logs_age, "retention.logs-age", 1_000, YEAR_MS) / 1_000

    @property
    def logs_bytes_max(self) -> int:
        return parse_bytes(self.logs_size, "retention.logs-size", 1 << 20)

    @property
    def disk_reserve_bytes(self) -> int:
        return parse_bytes(self.disk_reserve, "retention.disk-reserve", 0, 1 << 40)


class LimitsConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """How attempts are held to their limits."""

    #: of attempts, one for each: auto (below the executor's own, if it may), off (limits of single processes), or the
    #: path of a cgroup of version 2 that is this executor's to divide
    cgroup: str = "auto"


#: what tasks have of the executor's environment: names, or patterns as of files
PASS_ENV = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHON*",
    "VIRTUAL_ENV", "SSL_CERT_*", "TIFLOW_MASTER_ADDRS",
)  # fmt: skip


class ExecutorConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    name: str = ""  #: empty: the advertise address, its colon as a dash
    join: tuple[str, ...] = ()  #: host:port of one or more masters, any of them
    addr: str = "127.0.0.1:10241"
    advertise_addr: str = ""
    data_dir: str = "./data/executor"
    slots: int = 0  #: tasks that run at once; 0: the number of cores
    drain_timeout: str = "10s"  #: after SIGTERM running tasks have so long; then they are handed back
    labels: dict[str, str] = {}
    resources: dict[str, Any] = {}  #: what its tasks may need together: cpu, memory, and whatever else it has
    log_bytes_max: int = 64 << 20  #: of stdout and of stderr of one attempt; what comes after is dropped, and said
    result_bytes_max: int = 256 << 20  #: of one result
    pass_env: tuple[str, ...] = PASS_ENV  #: variables of the executor that tasks get; ["*"]: all
    env: dict[str, str] = {}  #: variables that tasks get beside these
    job_types: dict[str, str] = {}  #: job types beside the installed ones: name = "module:Class"
    worker: WorkerConfig = WorkerConfig()
    limits: LimitsConfig = LimitsConfig()
    retention: RetentionConfig = RetentionConfig()
    results: ResultsConfig = ResultsConfig()
    security: SecurityConfig = SecurityConfig()
    log: LogConfig = LogConfig()

    @property
    def drain_timeout_s(self) -> float:
        return parse_duration_ms(self.drain_timeout, "drain-timeout", 0) / 1_000

    @property
    def capacity(self) -> dict[str, int]:
        """`resources` with cpu in thousandths, memory in bytes, others in whole units."""
        return parse_resources(self.resources, "resources")


# ---- loading


def load_master(path: str | None, **overrides: Any) -> MasterConfig:
    """Read `path` (None: defaults only) and put the overrides over it, where None means "not given".

    Overrides: name, addr, advertise_addr, http_addr, data_dir, peers, metadata_url, log_level, log_file, insecure,
    ca_path, cert_path, key_path. A list may be given as a comma-separated string, or as a sequence of such strings.
    """
    config, where = _load(path, MasterConfig, overrides, _MASTER_OVERRIDES)
    return check_master(config, where)


def load_executor(path: str | None, **overrides: Any) -> ExecutorConfig:
    """As `load_master`. Overrides: name, join, addr, advertise_addr, data_dir, slots, labels and resources
    (`k=v`), log_level, log_file, insecure, ca_path, cert_path, key_path."""
    if overrides.get("labels") is not None:
        overrides["labels"] = parse_labels(split_commas(overrides["labels"]), "--labels")
    if overrides.get("resources"):
        overrides["resources"] = parse_pairs(split_commas(overrides["resources"]), "--resources", "gpu=2")
    config, where = _load(path, ExecutorConfig, overrides, _EXECUTOR_OVERRIDES)
    return check_executor(config, where)


def check_master(config: MasterConfig, where: Where = str) -> MasterConfig:
    """Normalise the addresses, fill in what follows from them, and refuse what cannot work."""
    addr, advertise_addr = _addresses(config.addr, config.advertise_addr, where)
    http_addr = normal_address(config.http_addr, where("http-addr")) if config.http_addr else ""
    name = _check_name(config.name or advertise_addr, where)
    peers = tuple(normal_address(peer, where("raft.peers")) for peer in config.raft.peers)
    _check_peers(peers, advertise_addr, where)
    _check_security(config.security, {"addr": addr, "http-addr": http_addr}, where)
    _check_log(config.log, where)
    if config.http_addr and http_addr == addr:
        raise InvalidArgument(f"{where('http-addr')} = {http_addr}: is the address of addr too; use another port")
    if not config.data_dir:
        raise InvalidArgument(f"{where('data-dir')} is empty: name the directory that holds this master's log")
    if not 100 <= config.raft.snapshot_entries <= 10_000_000:
        raise InvalidArgument(
            f"{where('raft.snapshot-entries')} = {config.raft.snapshot_entries}: must be 100..10000000"
        )
    if not 0 <= config.raft.disk_reserve_bytes <= DISK_RESERVE_BYTES_MAX:
        raise InvalidArgument(
            f"{where('raft.disk-reserve-bytes')} = {config.raft.disk_reserve_bytes}: "
            f"must be 0..{DISK_RESERVE_BYTES_MAX}"
        )
    checked = replace(
        config,
        name=name,
        addr=addr,
        advertise_addr=advertise_addr,
        http_addr=http_addr,
        raft=replace(config.raft, peers=peers),
    )
    check_timings(checked, where)
    _check_backoff(config.job_backoff, where)
    parse_duration_ms(config.metadata.retention, where("metadata.retention"), 0, RETENTION_MS_MAX)
    return checked


def check_executor(config: ExecutorConfig, where: Where = str) -> ExecutorConfig:
    """As `check_master`."""
    addr, advertise_addr = _addresses(config.addr, config.advertise_addr, where)
    join = tuple(dict.fromkeys(normal_address(master, where("join")) for master in config.join))
    if not join:
        raise InvalidArgument(
            'join is empty: name at least one master, as --join HOST:10240 or as join = ["HOST:10240"] in the file'
        )
    if advertise_addr in join:
        raise InvalidArgument(
            f"{where('join')} = {advertise_addr}: is this executor's own address; name a master (usually port 10240)"
        )
    if not 0 <= config.slots <= SLOTS_MAX:
        raise InvalidArgument(f"{where('slots')} = {config.slots}: must be 0 (the number of cores) to {SLOTS_MAX}")
    parse_resources(config.resources, where("resources"))
    for key, value, least in (
        ("log-bytes-max", config.log_bytes_max, 64 << 10),
        ("result-bytes-max", config.result_bytes_max, 1 << 10),
    ):
        if not least <= value <= 1 << 40:
            raise InvalidArgument(
                f"{where(key)} = {value}: must be {least} ({show_bytes(least)}) to {1 << 40} (1 TiB)"
            )
    if not config.data_dir:
        raise InvalidArgument(f"{where('data-dir')} is empty: name the directory that holds this executor's results")
    if config.results.store:
        check_url(config.results.store, where("results.store"))
    name = config.name or re.sub(r"[:\[\]]+", "-", advertise_addr).strip("-")
    if not re.fullmatch(ID_CHARS, name):
        raise InvalidArgument(f"{where('name')} = {show(name)}: must be {ID_WORDS}")
    for label, text in config.labels.items():
        check_label(label, text, where("labels"))
    _check_tasks(config, where)
    _check_security(config.security, {"addr": addr}, where)
    _check_log(config.log, where)
    return replace(config, name=name, addr=addr, advertise_addr=advertise_addr, join=join)


def _check_tasks(config: ExecutorConfig, where: Where) -> None:
    worker, retention = config.worker, config.retention
    for module in worker.preload:
        if not all(part.isidentifier() for part in module.split(".")):
            raise InvalidArgument(
                f'{where("worker.preload")} = {show(module)}: is not the name of a module, as "json"'
            )
    if worker.tasks_max < 0:
        raise InvalidArgument(f"{where('worker.tasks-max')} = {worker.tasks_max}: must be 0 (never) or more")
    if config.limits.cgroup not in ("auto", "off") and not config.limits.cgroup.startswith("/"):
        raise InvalidArgument(
            f'{where("limits.cgroup")} = {show(config.limits.cgroup)}: must be "auto", "off", or the path of a '
            'cgroup, as "/sys/fs/cgroup/tiflow"'
        )
    for name, entry in config.job_types.items():
        if not re.fullmatch(ID_CHARS, name) or len(name) > TYPE_CHARS_MAX:
            raise InvalidArgument(
                f"{where('job-types')}: {show(name)}: must be 1 to {TYPE_CHARS_MAX} letters, digits, '.', '_' or "
                "'-', beginning with a letter or digit"
            )
        if not re.fullmatch(r"\w+(\.\w+)*:\w+", entry):
            raise InvalidArgument(
                f'{where("job-types")}.{name} = {show(entry)}: must be MODULE:CLASS, as "ourjobs.tail:Tail"'
            )
    parse_duration_ms(config.drain_timeout, where("drain-timeout"), 0)
    parse_bytes(worker.growth_max, where("worker.growth-max"), 1 << 20)
    parse_duration_ms(retention.logs_age, where("retention.logs-age"), 1_000, YEAR_MS)
    parse_bytes(retention.logs_size, where("retention.logs-size"), 1 << 20)
    parse_bytes(retention.disk_reserve, where("retention.disk-reserve"), 0, 1 << 40)
    for name, value in config.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidArgument(f"{where('env')}: {show(name)} cannot be an environment variable")


def metadata_warning(config: MasterConfig) -> str | None:
    """What to say when masters each keep their metadata in a file of their own."""
    peers = config.raft.peers
    hosts = {parse_address(peer, "raft.peers")[0] for peer in peers}
    if len(hosts) > 1 and config.metadata.url.startswith("sqlite"):
        why = f"metadata.url is SQLite, but the masters are on {len(hosts)} hosts"
    elif len(peers) > 1 and not config.metadata.url:
        why = f"metadata.url is not set, and there are {len(peers)} masters"
    else:
        return None
    return (
        f"{why}: each has a history and checkpoints of its own, lost with its disk, and jobs do not find their "
        'checkpoints when the leader changes; set metadata.url = "mysql+pymysql://USER:PASSWORD@HOST/DATABASE"'
    )


def prepare_data_dir(path: str, key: str = "data-dir") -> Path:
    """Create the directory and see that it can be written, before anything else is started."""
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise FailedPrecondition(
            f"{key} = {path}: cannot be written ({error.strerror}); make it writable, or name another one"
        ) from None
    return directory


# ---- helpers

SLOTS_MAX = 4_096
DISK_RESERVE_BYTES_MAX = 1 << 40
YEAR_MS = 366 * 86_400_000
RETENTION_MS_MAX = 3_650 * 86_400_000
MASTERS_MAX = 7
LOG_LEVELS = ("debug", "info", "warning", "error")

_SHARED_OVERRIDES = {
    "name": "name",
    "addr": "addr",
    "advertise_addr": "advertise-addr",
    "data_dir": "data-dir",
    "log_level": "log.level",
    "log_file": "log.file",
    "insecure": "security.insecure",
    "ca_path": "security.ca-path",
    "cert_path": "security.cert-path",
    "key_path": "security.key-path",
}
_MASTER_OVERRIDES = _SHARED_OVERRIDES | {
    "http_addr": "http-addr",
    "peers": "raft.peers",
    "metadata_url": "metadata.url",
}
_EXECUTOR_OVERRIDES = _SHARED_OVERRIDES | {name: name for name in ("join", "slots", "labels", "resources")}
_LISTS = ("join", "raft.peers")

Config = TypeVar("Config", MasterConfig, ExecutorConfig)


def _load(
    path: str | None, kind: type[Config], overrides: Mapping[str, Any], keys: Mapping[str, str]
) -> tuple[Config, Where]:
    tree = read_toml(path, "--config") if path else {}
    if path:
        check_keys(tree, kind, path)
    given: dict[str, str] = {}
    for name, value in overrides.items():
        key = keys[name]  # a name that is not there is a mistake of ours
        if value is None or value in ((), []):
            continue
        given[key] = f"--{name.replace('_', '-')}"
        *tables, leaf = key.split(".")
        table: Any = tree
        for part in tables:
            table = table.setdefault(part, {})
        if isinstance(table, dict):  # else convert says so below
            table[leaf] = list(split_commas(value)) if key in _LISTS else value

    def where(key: str) -> str:
        return given.get(key) or (f"{path}: {key}" if path else key)

    try:
        return msgspec.convert(tree, kind), where
    except msgspec.ValidationError as error:
        raise type_error(error, tree, where) from None


def _addresses(addr: str, advertise_addr: str, where: Where) -> tuple[str, str]:
    host, port = parse_address(addr, where("addr"))
    if not advertise_addr:
        if is_wildcard(host):
            raise InvalidArgument(
                f"{where('addr')} = {addr}: others cannot dial this address; give --advertise-addr HOST:{port} "
                "(or advertise-addr in the file)"
            )
        return format_address(host, port), format_address(host, port)
    shown_host, shown_port = parse_address(advertise_addr, where("advertise-addr"))
    if is_wildcard(shown_host):
        raise InvalidArgument(
            f"{where('advertise-addr')} = {advertise_addr}: others cannot dial this address; name the IP or host "
            "name by which they reach this machine"
        )
    return format_address(host, port), format_address(shown_host, shown_port)


def _check_name(name: str, where: Where) -> str:
    # the address is the default name, hence the colon and the brackets
    if not re.fullmatch(r"[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]{0,127}", name):
        raise InvalidArgument(
            f"{where('name')} = {show(name)}: must be 1 to 128 letters, digits, '.', '_', ':' or '-', and begin with "
            "a letter or digit"
        )
    return name


def _check_peers(peers: tuple[str, ...], advertise_addr: str, where: Where) -> None:
    if not peers:
        return
    key, listed = where("raft.peers"), ", ".join(peers)
    for position, peer in enumerate(peers):
        if peer in peers[:position]:
            raise InvalidArgument(f"{key} = {listed}: {peer} is there twice; list each master once")
    if advertise_addr not in peers:
        raise InvalidArgument(
            f"{key} = {listed}: does not contain this master's own advertise-addr {advertise_addr}; list every "
            "master, this one too, exactly as each advertises itself"
        )
    if len(peers) % 2 == 0 or len(peers) > MASTERS_MAX:
        raise InvalidArgument(
            f"{key} = {listed}: lists {len(peers)} masters; use 1, 3, 5 or 7 (an even number survives no more "
            "failures than one less)"
        )


def _check_security(security: SecurityConfig, addresses: Mapping[str, str], where: Where) -> None:
    """What is in the files is looked at when they are used."""
    paths = {"ca-path": security.ca_path, "cert-path": security.cert_path, "key-path": security.key_path}
    given = [key for key, path in paths.items() if path]
    missing = [key for key, path in paths.items() if not path]
    if given and missing:
        raise InvalidArgument(
            f"{where(f'security.{given[0]}')} is given, but {' and '.join(missing)} not: TLS needs all three; "
            "`tiflow cert --help` shows how to make them"
        )
    if given and security.insecure:
        raise InvalidArgument(
            f"{where('security.insecure')} = true: goes against {where('security.ca-path')} = {security.ca_path}; "
            "remove the one or the other"
        )
    if security.cert_allowed_cn and not given:
        raise InvalidArgument(
            f"{where('security.cert-allowed-cn')} = {', '.join(security.cert_allowed_cn)}: there are no names to "
            "look at without ca-path, cert-path and key-path"
        )
    for key, address in addresses.items():
        if address and not (given or security.insecure) and not is_loopback(parse_address(address, key)[0]):
            raise InvalidArgument(
                f"{where(key)} = {address}: is reachable from other machines, and nothing is encrypted or "
                "authenticated; set [security] ca-path, cert-path and key-path (`tiflow cert --help`); or, if your "
                "network is trusted, give --insecure or set [security] insecure = true; or use 127.0.0.1"
            )


def _check_log(log: LogConfig, where: Where) -> None:
    if log.level not in LOG_LEVELS:
        raise InvalidArgument(f"{where('log.level')} = {show(log.level)}: must be one of {', '.join(LOG_LEVELS)}")


def _check_backoff(backoff: BackoffConfig, where: Where) -> None:
    for key, text, most_ms in (
        ("initial-interval", backoff.initial_interval, 3_600_000),
        ("max-interval", backoff.max_interval, 86_400_000),
        ("reset-interval", backoff.reset_interval, 30 * 86_400_000),
    ):
        parse_duration_ms(text, where(f"job-backoff.{key}"), 0, most_ms)
    if not 1 <= backoff.multiplier <= 10:
        raise InvalidArgument(f"{where('job-backoff.multiplier')} = {backoff.multiplier}: must be 1 to 10")
    if not 1 <= backoff.max_try_time <= ATTEMPTS_MAX:
        raise InvalidArgument(
            f"{where('job-backoff.max-try-time')} = {backoff.max_try_time}: must be 1 to {ATTEMPTS_MAX}"
        )
