"""Files, folders, memory and the terminal, and what all settings have in common."""
