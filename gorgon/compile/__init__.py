"""Offline work on files: heads and models made ready to serve."""
