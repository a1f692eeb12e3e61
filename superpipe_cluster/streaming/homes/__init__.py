"""Where the host copies live (`pinned`, `shared`, `disk`), and how weights get there at first."""
