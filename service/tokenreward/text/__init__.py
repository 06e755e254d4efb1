"""Text to tokens and back: a tokenizer with its chat template, and where each token ends in the
text. It imports no torch and no transformers: the tokenizer is handed in by its loader."""
