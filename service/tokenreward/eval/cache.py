"""Keeps answers in a file, so that a run that was stopped goes on where it stopped.

The file has one JSON line per answer, appended as answers come. A line's key is a hash of
everything that the answer depends on, so that another model, version or option finds nothing. A
line that cannot be read (the last one of a run that was killed) counts as absent. Errors are not
kept: the next run asks again. It knows no HTTP.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.wire import decode_rewards, encode_rewards

_FORMAT = 1


def key_of(*parts: Any) -> str:
    """A hash of JSON values; the order of an object's keys does not count."""
    content = json.dumps([_FORMAT, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("ascii")).hexdigest()


def read_answers(file: Path, keys: Iterable[str]) -> tuple[dict[str, CandidateAnswer], int]:
    """The answers under these keys, as far as the file has them.

    Args:
        file: The file; there may be none yet.
        keys: Made with `key_of`. Where two lines have one key, the later line counts.

    Returns:
        The answers by key, and the number of lines that cannot be read.

    Raises:
        OSError: The file cannot be read.
    """
    keys, num_unreadable = set(keys), 0
    answers: dict[str, CandidateAnswer] = {}
    if not file.exists():
        return answers, 0
    with file.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
                if record["key"] in keys:
                    answers[record["key"]] = from_record(record)
            except (ValueError, KeyError, TypeError, RecursionError):
                num_unreadable += 1
    return answers, num_unreadable


def append_answers(file: Path, answers: Mapping[str, CandidateAnswer]) -> int:
    """Write these answers, but none that is an error, and say how many that are. Raises OSError."""
    lines = []
    for key, answer in answers.items():
        if answer.error is None:
            record = {"key": key, **to_record(answer)}
            lines.append(json.dumps(record, separators=(",", ":")) + "\n")
    if not lines:
        return 0
    text = "".join(lines)
    with file.open("ab+") as stream:
        # A line that a killed run left half-written must not take the next one with it.
        if stream.tell():
            stream.seek(-1, 2)
            if stream.read(1) != b"\n":
                text = "\n" + text
        stream.write(text.encode("ascii"))
    return len(lines)


def to_record(answer: CandidateAnswer) -> dict[str, Any]:
    """An answer without an error as a JSON object."""
    record: dict[str, Any] = {"score": answer.score}
    if answer.rewards is not None:
        rewards, spans = answer.require_units()
        record["rewards"] = encode_rewards(rewards)
        record["spans"] = spans.tolist()
        record["names"] = list(answer.names)
    if answer.steps is not None:
        record["steps"] = answer.steps.tolist()
    if answer.timing is not None:
        record["timing"] = list(answer.timing)
    return record


def from_record(record: dict[str, Any]) -> CandidateAnswer:
    """The answer that `to_record` made this object of.

    Raises KeyError, TypeError or ValueError for an object that `to_record` never makes.
    """
    score = record["score"]
    if score is not None and not np.isfinite(float(score)):
        raise ValueError("the score is not finite")
    seconds, since_last_s, num_items, concurrency = record["timing"]
    timing = float(seconds), float(since_last_s), int(num_items), int(concurrency)
    steps = None
    if "steps" in record:
        steps = np.asarray(record["steps"], dtype=np.float64).reshape(-1)
        if not np.isfinite(steps).all():
            raise ValueError("a step score is not finite")
    if "rewards" not in record:
        return CandidateAnswer(score, steps=steps, timing=timing)
    rewards = decode_rewards(record["rewards"])
    spans = np.asarray(record["spans"], dtype=np.int64).reshape(-1, 2)
    if len(rewards) != len(spans) or not np.isfinite(rewards).all():
        raise ValueError("rewards and spans do not go together")
    names = tuple(map(str, record["names"]))
    return CandidateAnswer(score, rewards, spans, names, steps, timing=timing)
