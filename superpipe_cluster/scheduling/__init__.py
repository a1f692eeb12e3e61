"""Who runs next, where, with how many bytes, and why not the others: `decide(snapshot)`.

Pure: no clock, no I/O, no randomness of its own. The same snapshot gives the same decisions.
"""
