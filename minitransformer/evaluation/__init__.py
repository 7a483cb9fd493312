"""How good a model is: its loss over whole texts and tasks, in units that can be compared."""
