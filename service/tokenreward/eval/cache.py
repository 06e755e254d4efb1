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


class AnswerCache:
    """One file of answers.

    `num_unreadable` counts the lines that the last `read` could not read; `num_appended` counts the
    answers that this process has appended.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.num_unreadable = self.num_appended = 0

    def read(self, keys: Iterable[str]) -> dict[str, CandidateAnswer]:
        """The answers under these keys, as far as the file has them. Raises OSError.

        Where two lines have one key, the later line counts.
        """
        keys, answers = set(keys), {}
        self.num_unreadable = 0
        if not self.file.exists():
            return {}
        with self.file.open("rb") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                    if record["key"] in keys:
                        answers[record["key"]] = from_record(record)
                except (ValueError, KeyError, TypeError, RecursionError):
                    self.num_unreadable += 1
        return answers

    def append(self, answers: Mapping[str, CandidateAnswer]) -> None:
        """Write these answers, but none that is an error. Raises OSError."""
        lines = []
        for key, answer in answers.items():
            if answer.error is None:
                record = {"key": key, **to_record(answer)}
                lines.append(json.dumps(record, separators=(",", ":")) + "\n")
        if not lines:
            return
        text = "".join(lines)
        with self.file.open("ab+") as file:
            # A line that a killed run left half-written must not take the next one with it.
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    text = "\n" + text
            file.write(text.encode("ascii"))
        self.num_appended += len(lines)


def to_record(answer: CandidateAnswer) -> dict[str, Any]:
    """An answer without an error as a JSON object."""
    record: dict[str, Any] = {"score": answer.score}
    if answer.rewards is not None:
        rewards, spans = answer.require_units()
        record["rewards"] = encode_rewards(rewards)
        record["spans"] = spans.tolist()
        record["names"] = list(answer.names)
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
    if "rewards" not in record:
        return CandidateAnswer(score, timing=timing)
    rewards = decode_rewards(record["rewards"])
    spans = np.asarray(record["spans"], dtype=np.int64).reshape(-1, 2)
    if len(rewards) != len(spans) or not np.isfinite(rewards).all():
        raise ValueError("rewards and spans do not go together")
    names = tuple(map(str, record["names"]))
    return CandidateAnswer(score, rewards, spans, names, timing=timing)
