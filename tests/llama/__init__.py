"""Tests of gorgon.llama."""
