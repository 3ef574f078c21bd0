"""The tables, and the way to a database that holds them.

Values come from the replicated state alone: no defaults, no auto-increment, no time of the database. So
projecting twice writes the same rows.
"""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from tiflow.errors import InvalidArgument
from tiflow.sched.model import JOB_TERMINAL, JobState

#: A longer silence of the database is an outage. A stopping process waits for the thread that is in one.
CONNECT_TIMEOUT_S = 3
ANSWER_TIMEOUT_S = 10
#: errors of connections, rights, disks, locks, tables that are not there
MYSQL_OUTAGES = frozenset(
    {3, 1020, 1021, 1026, 1030, 1040, 1044, 1045, 1049, 1053, 1114, 1129, 1130, 1142, 1146, 1158, 1159, 1160, 1161}
    | {1203, 1205, 1206, 1213, 1226, 1227, 1290, 1317, 1792, 1836, 1969, 2002, 2003, 3024}
)
SQLITE_OUTAGES = ("locked", "unable to open", "I/O error", "is full", "readonly", "no such")


def _text(length: int) -> sa.types.TypeEngine[str]:
    """The same, for what may have any characters."""
    exact = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(length).with_variant(exact, "mysql", "mariadb")


def _name(length: int) -> sa.types.TypeEngine[str]:
    """Text compared byte by byte: MySQL's default collation would take "Job" and "job" for the same id."""
    exact = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(exact, "mysql", "mariadb")


#: MySQL's plain BLOB ends at 64 KiB. A spec has 4 MiB at most (model.SPEC_BYTES_MAX).
_BYTES = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
_TEXT = sa.Text().with_variant(mysql.TEXT(charset="utf8mb4"), "mysql", "mariadb")

METADATA = sa.MetaData()

#: One row: which cluster this database belongs to, and which revision it stands at.
PROJECTION = sa.Table(
    "projection",
    METADATA,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),  # always 1
    sa.Column("cluster_id", _name(128), nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("pruned", sa.BigInteger, nullable=False),  # jobs that the masters have left to the database so far
)

JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("uid", sa.BigInteger, primary_key=True, autoincrement=False),
    # Not unique: a job that left the replicated state stays here, and its id may be taken by another one.
    # Besides, MySQL's upsert acts on any unique key, so that one on `id` would overwrite the older job.
    sa.Column("id", _name(128), nullable=False, index=True),
    sa.Column("cluster_id", _name(128), nullable=False),
    sa.Column("state", _name(32), nullable=False, index=True),
    sa.Column("type", _name(32), nullable=False),
    sa.Column("spec", _BYTES, nullable=False),
    sa.Column("token", _text(128), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("succeeded", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("canceled", sa.BigInteger, nullable=False),
    sa.Column("submitted_at_ms", sa.BigInteger, nullable=False),
    sa.Column("started_at_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_at_ms", sa.BigInteger, nullable=False),
    sa.Column("mod_revision", sa.BigInteger, nullable=False),
)

#: The history of jobs, in order of (revision, seq).
JOB_EVENTS = sa.Table(
    "job_events",
    METADATA,
    sa.Column("uid", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),  # within the revision
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("kind", _name(32), nullable=False),
    sa.Column("message", _TEXT, nullable=False),
    sa.Column("by_whom", _text(255), nullable=False),  # empty: by tiflow itself, or from before it was kept
)
JOB_CHECKPOINTS = sa.Table(
    "job_checkpoints",
    METADATA,
    sa.Column("uid", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key", _name(255), primary_key=True),
    sa.Column("value", _BYTES, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),  # of the job master that wrote it
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
)

#: Which attempt of a job's master, or of a worker, may write checkpoints, and through the leader of which term: none
#: that is lower.
JOB_FENCES = sa.Table(
    "job_fences",
    METADATA,
    sa.Column("uid", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("holder", _name(255), primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("term", sa.BigInteger, nullable=False),
)
#: All that is kept of a job that has ended: a state that has it alone, as a snapshot has it, compressed by zlib.
JOB_ARCHIVES = sa.Table(
    "job_archives",
    METADATA,
    sa.Column("uid", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("body", _BYTES, nullable=False),
)

#: Everything that goes with a job, by its uid.
TABLES_OF_A_JOB = (JOBS, JOB_EVENTS, JOB_CHECKPOINTS, JOB_FENCES, JOB_ARCHIVES)
TERMINAL = tuple(sorted(str(state) for state in JOB_TERMINAL))
UNFINISHED = tuple(sorted(str(state) for state in JobState if state not in JOB_TERMINAL))


def open_engine(url: str | sa.URL, *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> sa.Engine:
    """Checks `[metadata] url` and prepares for connecting, without doing so."""
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
        if backend not in ("sqlite", "mysql", "mariadb"):
            raise InvalidArgument(
                f"[metadata] url: {backend} is not supported; use sqlite:///FILE or "
                "mysql+pymysql://USER:PASSWORD@HOST/DATABASE"
            )
        if not parsed.database or parsed.database == ":memory:":
            missing = "file" if backend == "sqlite" else "database"
            raise InvalidArgument(f"[metadata] url: {parsed.render_as_string()} names no {missing}")
        timeouts = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": answer_timeout_s,
            "write_timeout": answer_timeout_s,
        }
        given = parsed.query  # what a URL says of them goes before
        waits = {name: wait_s for name, wait_s in timeouts.items() if name not in given}
        connect_args = waits if parsed.get_driver_name() == "pymysql" else {}
        # hide_parameters: a spec holds its tasks' environment, which must not get into an error's text.
        # pool_pre_ping: a server closes connections that idle for hours; that is no outage.
        return sa.create_engine(parsed, hide_parameters=True, pool_pre_ping=True, connect_args=connect_args)
    except sa.exc.NoSuchModuleError as error:
        raise InvalidArgument(f"[metadata] url: {error}; use mysql+pymysql:// or sqlite:///") from error
    except sa.exc.ArgumentError as error:
        raise InvalidArgument(f"[metadata] url: not a SQLAlchemy URL such as sqlite:///FILE ({error})") from error
    except ValueError as error:  # its text may be a piece of the password, were that not escaped
        raise InvalidArgument(
            "[metadata] url: the port is no number; special characters of a password are written as %XX"
        ) from error
    except ModuleNotFoundError as error:
        raise InvalidArgument(f"[metadata] url: its driver is not installed ({error}); mysql+pymysql is") from error


def is_outage(error: Exception) -> bool:
    """Whether the whole database does not do as it is asked: nothing that was written is to blame."""
    if not isinstance(error, sa.exc.DBAPIError) or error.orig is None:
        return False
    args: tuple[object, ...] = error.orig.args
    if args and isinstance(args[0], int):
        return args[0] in MYSQL_OUTAGES
    text = str(args[0]) if args else ""
    return any(word in text for word in SQLITE_OUTAGES)


def reason(error: Exception) -> str:
    """The driver's own words in one line, without SQLAlchemy's statement and background link."""
    if isinstance(error, sa.exc.DBAPIError) and error.orig is not None and error.orig.args:
        text = str(error.orig.args[-1])  # PyMySQL puts an error number first
    else:
        text = str(error) or type(error).__name__
    return text.partition("\n")[0]
