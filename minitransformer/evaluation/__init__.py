"""Evaluation: the loss of a model on validation data, in units that compare models, and its scores."""
