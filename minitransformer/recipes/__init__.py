"""Recipes: named settings for a whole training run, as TOML files in this folder."""
