"""The engine on one GPU, beside what people write on transformers, and beside what the device could
do at best.

Not part of the test suite: `PYTHONPATH=service:tests python -m gpu`. `--rehearse` runs all of it on
a CPU, in seconds.
"""
