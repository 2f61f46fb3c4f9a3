"""Tests of gorgon.tune."""
