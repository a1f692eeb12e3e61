"""The command line: one file per verb in `verbs/`, found and loaded when it is typed.

Owns words, tables, colours and exit codes. Knows nothing that the client does not say.
"""
