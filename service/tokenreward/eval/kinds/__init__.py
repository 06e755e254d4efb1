"""The kinds of data, one file each: how a row is read, and how answers are judged.

A kind is a function from rows to a `Dataset`. `tokenreward.eval.loading` lists the kinds and tells
which one a file is.

rm_bench         three styles of a right answer against three styles of a wrong one
reward_bench_2   the best of several responses, and sets of equally right ones
preference       a chosen and a rejected response; pair_forms reads them
best_of_n        several responses to a prompt, each right or wrong; response_forms reads them
unpaired         single responses, each good or bad
tokens           responses with what is wrong in them, character by character
steps            solutions in steps; step_forms reads them, prm_score is PRMBench's figure
flags            flagged characters, which `preference` and `tokens` share; no kind itself
"""
