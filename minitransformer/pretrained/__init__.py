"""Model folders in the layouts of the Hugging Face library: what is written, and what is read."""
