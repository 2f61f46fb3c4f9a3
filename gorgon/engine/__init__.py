"""Scheduling, sequences and the step: token ids only, no text, no HTTP."""
