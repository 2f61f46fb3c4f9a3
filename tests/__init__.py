"""Tests; ``tests.fake`` holds the model of a few lines that drives the real engine."""
