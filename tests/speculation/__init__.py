"""Tests of gorgon.speculation."""
