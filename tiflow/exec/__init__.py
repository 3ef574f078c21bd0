"""The executor: an agent that keeps a session with the leader, a guardian that forks and kills, and workers.

Importing this package must stay free of gRPC: the guardian and the workers are processes without threads.
"""

MEMBER_FD_VARIABLE = "TIFLOW_MEMBER_FD"  #: of the environment: which descriptor is a member's socket to the agent
