"""What can be seen of a model and of a run: traces of its operations, attention maps, plots."""
