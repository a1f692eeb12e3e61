"""One file per kind of work: its job class and the sections that only it has."""
