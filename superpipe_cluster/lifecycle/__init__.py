"""What can happen to a job, and what it is afterwards: states, events, the table, the record, the step.

Everything here is pure: no clock, no I/O, no Redis, no Ray. The store writes what `step` computes, the head
decides which events happen. The README beside this file holds the diagram; a test keeps it equal to
`table.py`.
"""
