"""Where the cluster's memory is: jobs, their events, settings and users, in Redis.

The head is the only writer. `interface.py` says what a store does, `keys.py` lists every key,
`redis_store.py` and `memory_store.py` are the two stores, `cached_store.py` remembers what is in one of them, and
`embedded.py` starts a Redis of our own where there is none.
"""
