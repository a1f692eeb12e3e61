"""`workers/` holds programs that are run by path, one per kind of work; it is not a package to import."""

raise ModuleNotFoundError(
    "workers/ is a folder of programs, not a package: run one with `spcluster submit` (worker: NAME or ./my.py)"
)
