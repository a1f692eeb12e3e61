"""Activations that backward computes again, or that wait in host memory."""
