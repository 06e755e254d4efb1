"""Models: what stands between token rows and numbers. Everything that imports torch or transformers is in here.

checkpoint loads, vocabulary turns text into tokens, attention and head are the two fast pieces, packed and plain are
the two ways to run a batch of rows, probe decides between them. None of it knows scorers, credit or HTTP.
"""
