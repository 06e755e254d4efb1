"""The kinds of data, one file each: how a row is read, and how answers are judged.

A kind is a function from rows to a `Dataset`. `tokenreward.eval.loading` lists the kinds and tells
which one a file is.

rm_bench       three styles of a right answer against three styles of a wrong one
preference     a chosen and a rejected response
best_of_n      several responses to a prompt, each right or wrong
tokens         responses with what is wrong in them, character by character
flags          flagged characters, which `preference` and `tokens` share; no kind itself
"""
