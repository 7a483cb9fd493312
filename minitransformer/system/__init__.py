"""What the operating system gives: files, memory, the terminal; and what settings have in common."""
