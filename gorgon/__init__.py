"""Gorgon: Medusa heads on llama.cpp, one forward pass per step for every running request."""

__version__ = "0.1.0"
