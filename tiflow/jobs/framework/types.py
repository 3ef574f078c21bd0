"""Which job types are known here: those of installed packages (entry points `tiflow.job_types`), those that an
executor's settings name, and our own."""

import importlib
from collections.abc import Mapping
from functools import reduce
from typing import Any, Final

from tiflow.errors import InvalidArgument
from tiflow.jobs.framework.member import JobMaster, Member
from tiflow.sched.model import TYPE_LABEL

GROUP: Final = "tiflow.job_types"
OWN: Final = {"fake": "tiflow.jobs.fake:Fake", "cvs": "tiflow.jobs.cvs:Cvs"}  #: also where tiflow is not installed


def known(entries: Mapping[str, str]) -> dict[str, str]:
    """`module:Class` of each job type by its name. `entries`: what the settings name, before what is installed."""
    from importlib.metadata import entry_points  # slow to import, and most members need not look

    installed = {point.name: point.value for point in entry_points(group=GROUP)}
    return OWN | installed | dict(entries)


def settled(entries: Mapping[str, str]) -> dict[str, str]:
    """`entries`, and those of our own types that nothing installed replaces: members need not look these up."""
    found = known(entries)
    return {name: entry for name, entry in OWN.items() if found[name] == entry} | dict(entries)


def labels(entries: Mapping[str, str]) -> dict[str, str]:
    """By which an executor advertises its types."""
    return {f"{TYPE_LABEL}{name}": "yes" for name in sorted(known(entries))}


def find_type(name: str, entry: str = "") -> type[JobMaster]:
    """The class of a job master. `entry`: as the settings have it; empty: an installed one.

    Raises:
        InvalidArgument: there is none, or it cannot be loaded.
    """
    entry = entry or known({}).get(name, "")
    if not entry:
        listed = ", ".join(sorted(known({})))
        raise InvalidArgument(
            f'type = "{name[:128]}": is not known here; known are {listed}. Install its package (entry point '
            f'"{GROUP}"), or name it in the executor\'s [job-types]'
        )
    try:
        found = _load(entry)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidArgument(f'type = "{name}": {entry} cannot be loaded: {error}') from error
    if not (isinstance(found, type) and issubclass(found, JobMaster)):
        raise InvalidArgument(f'type = "{name}": {entry} is not a subclass of tiflow.jobs.framework.JobMaster')
    return found


def _load(entry: str) -> Any:
    module, _, names = entry.partition("[")[0].strip().partition(":")  # as importlib.metadata, extras aside
    return reduce(getattr, names.split("."), importlib.import_module(module))


def find_member(name: str, kind: str, entry: str = "") -> type[Member]:
    """The class of a member: of the job master if `kind` is empty, else of such a worker. Raises as `find_type`."""
    master = find_type(name, entry)
    if not kind:
        return master
    kinds = master.kinds_by_name()
    if kind not in kinds:
        raise InvalidArgument(
            f'kind = "{kind[:128]}": job type {name} has no such workers; it has {", ".join(sorted(kinds)) or "none"}'
        )
    return kinds[kind]


def is_installed(name: str) -> bool:
    """Whether this process could load that type; importing it may still fail."""
    importlib.invalidate_caches()
    return name in known({})
