"""Text to tokens and back: a tokenizer with its chat template, and where each token ends in the
text. No torch."""
