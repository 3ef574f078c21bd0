"""tiflow: a highly available distributed task scheduler.

`import tiflow` is cheap: gRPC is loaded with the first use of `tiflow.Client`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiflow.client import Client, ExecutorInfo, JobHandle, JobInfo, Result, TaskInfo

__version__ = "0.1.0"
__all__ = ["Client", "ExecutorInfo", "JobHandle", "JobInfo", "Result", "TaskInfo", "__version__"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("tiflow.client"), name)
    raise AttributeError(f"module 'tiflow' has no attribute {name!r}")
