"""`make sweep`: every language model and classifier of the installed transformers, as a tiny random
model, against its own forward in float64."""
