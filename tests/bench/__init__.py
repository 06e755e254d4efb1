"""Ratios against named rivals, both sides in turns in one run. Not part of the test suite: `make
bench`."""
