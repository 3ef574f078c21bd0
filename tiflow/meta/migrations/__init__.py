"""What has become of the tables, step by step. `tiflow.meta.schema` runs them.

MySQL commits each DDL statement by itself, so a step may be cut off anywhere: each can be run again from its
beginning. A step that was released is never changed.
"""
