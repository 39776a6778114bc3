"""Trained models on the model hub."""
