"""Benchmarks: modes and peers on the same prompts, in turns, with intervals one can trust."""
