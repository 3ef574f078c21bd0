"""The job type `cvs`: copies a tree of files, within an executor or from one to another."""

from tiflow.jobs.cvs.job import Cvs

__all__ = ["Cvs"]
