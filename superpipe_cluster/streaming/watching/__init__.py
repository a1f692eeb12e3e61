"""Seeing what a program reads, writes and allocates, whatever model it is."""
