"""The head: the one process that admits, decides and answers, and the starting and stopping of the cluster.

Owns the tick loop (`tick`), the service behind the HTTP API (`service`), what workers tell (`reports`), the
Ray actor around these (`actor`), and `up` and `down` (`cluster`). Everything the head needs to go on after
`kill -9` is in the store and in the jobs' folders; what it keeps in memory may be forgotten.
"""

from __future__ import annotations
