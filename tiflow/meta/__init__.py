"""Durable job metadata in a SQL database: an archive that scheduling never waits for.

`projector` brings the database to the revision of the replicated state, `history` reads it back.
"""
