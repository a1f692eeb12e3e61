"""Optimizers whose state is streamed, on the device or on the host."""
