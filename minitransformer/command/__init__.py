"""What is typed: a file for each command, and what they share."""
