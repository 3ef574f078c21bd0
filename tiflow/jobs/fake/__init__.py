"""The job type `fake`: workers that count, and can be wrong in no way that goes unseen.

Each worker ticks, and watches one key of a revisioned source (`tiflow.jobs.fake.source`): it counts the changes of
its key. Revision and count are one checkpoint, so whatever dies and whoever leads, the count must be exactly that of
the source.
"""

from tiflow.jobs.fake.job import Fake

__all__ = ["Fake"]
