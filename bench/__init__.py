"""Comparisons with peers, each in one command; see ``python -m bench``."""
