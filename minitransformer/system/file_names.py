"""The names of what is written into the folder of a model or of a run."""

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
METRICS, RUN, CORPUS, PICTURE = "metrics.jsonl", "run.json", "corpus.json", "training.png"
BEST = "best"  # a folder: the model of the lowest validation loss

# every file; the last is written by other programs, beside a tokenizer
WRITTEN = (
    *(CONFIG, WEIGHTS, GENERATION, TOKENIZER, TOKENIZER_CONFIG, METRICS, RUN, CORPUS, PICTURE),
    "special_tokens_map.json",
)
