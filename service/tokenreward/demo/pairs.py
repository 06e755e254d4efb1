"""Writes held-out pairs as JSON lines: `python -m tokenreward.demo.pairs --pairs 1000 --seed 1234 >
pairs.jsonl`.

A line is {prompt, chosen, rejected, subset, rejected_flagged}: the faithful response, the corrupted
one, the field that it has wrong (or `two facts`), and the half-open character ranges in which it is
wrong. `--flag differing`, the default, flags the characters that differ from the right value;
`--flag value` the whole wrong value. With the seed of `evaluate` the pairs are the same ones. It
knows no models.
"""

import argparse
import json
import signal
from typing import Any

from tokenreward.demo.corpus import user_turn
from tokenreward.demo.world import EVALUATION_SEED, OfferPair, sample_pairs


def line(pair: OfferPair, flag: str = "differing") -> dict[str, Any]:
    """One pair as it is written down."""
    ranges = pair.differing if flag == "differing" else pair.whole_values
    fields = list(pair.wrong)
    return {
        "prompt": user_turn(pair),
        "chosen": pair.faithful,
        "rejected": pair.corrupted,
        "subset": "two facts" if len(fields) > 1 else fields[0],
        "rejected_flagged": [list(item) for item in ranges],
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", type=int, default=1000, help="held-out pairs (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED, help="default: %(default)s")
    parser.add_argument(
        "--flag", choices=("differing", "value"), default="differing", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    for pair in sample_pairs(options.pairs, options.seed, "held_out"):
        print(json.dumps(line(pair, options.flag)))


if __name__ == "__main__":
    # A reader that has enough, as `head` has, ends the writer without a traceback.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
