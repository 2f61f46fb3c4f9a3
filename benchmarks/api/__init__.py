"""Proofs of the HTTP API that take longer than a test may."""
