"""Timing of the op and of models against their peers, each only after its results were checked."""
