"""Tests of gorgon.engine."""
