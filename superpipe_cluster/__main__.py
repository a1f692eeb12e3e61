"""`python -m superpipe_cluster` is `spcluster`."""

from __future__ import annotations

from superpipe_cluster.cli.main import main

if __name__ == "__main__":
    main()
