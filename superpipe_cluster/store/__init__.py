"""Where the cluster's memory is: jobs, their events, usage and users, in Redis.

The head is the only writer. `interface.py` says what a store does, `keys.py` lists every key,
`redis_store.py` and `memory_store.py` are the two stores, `embedded.py` starts a Redis of our own where there
is none.
"""
