"""What a request used and how long it took, for its reply and for the metrics.

It knows jobs and results, and computes neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenreward.engine.job import Job
from tokenreward.engine.plan import Plan
from tokenreward.wire import ItemResult, Timing, Usage, served_name

Report = Callable[..., None]
"""Takes the name of a metric, its value, and its labels."""


def usage_of(jobs: Sequence[Job]) -> Usage:
    """The tokens of the items that could be tokenised."""
    samples = [job.sample for job in jobs if job.error is None]
    return Usage(
        prompt_tokens=sum(len(sample.prompt_ids) for sample in samples),
        response_tokens=sum(len(sample.response_ids) for sample in samples),
    )


def timing_of(jobs: Sequence[Job], tokenize_s: float) -> Timing:
    """The longest wait of a job, and the time of all batches that jobs of the request were in."""
    seconds_of_batches = {job.batch_number: job.compute_s for job in jobs}
    return Timing(
        queue_s=max((job.queue_s for job in jobs), default=0.0),
        tokenize_s=tokenize_s,
        compute_s=sum(seconds_of_batches.values()),
    )


def report_results(
    report: Report, items: Sequence[ItemResult], jobs: Sequence[Job], plans: Sequence[Plan]
) -> None:
    """Reports what became of a request: items scored, tokens of items that some scorer scored, and
    errors by code. Errors of a combined sum are counted, too."""
    num_scored = dict.fromkeys((served_name(plan.name) for plan in plans), 0)
    scored_jobs = []
    for job, item in zip(jobs, items, strict=True):
        results = item.scorers or {plans[0].name: item}
        for name, result in results.items():
            num_scored[served_name(name)] += result.error is None
        if any(result.error is None for result in results.values()):
            scored_jobs.append(job)
        for result in item.results():
            if result.error is not None:
                report("errors_total", 1, code=result.error.code)
    for name, count in num_scored.items():
        report("items_total", count, scorer=name)
    usage = usage_of(scored_jobs)
    report("tokens_total", usage.prompt_tokens, kind="prompt")
    report("tokens_total", usage.response_tokens, kind="response")


def report_batch(report: Report, jobs: Sequence[Job], num_computed: int) -> None:
    """Reports a batch.

    Args:
        report: Called with each metric.
        jobs: The jobs of the batch.
        num_computed: Tokens that the model computed: a shared prompt once, and padding, too.
    """
    num_tokens = sum(job.num_tokens for job in jobs)
    report("compute_seconds", jobs[0].compute_s)
    report("batch_items", len(jobs))
    report("batch_tokens", num_tokens)
    report("computed_tokens_total", num_computed)
    # A layout shares prompts or pads rows, so the difference is one or the other.
    report("shared_tokens_total", max(0, num_tokens - num_computed))
    report("padding_tokens_total", max(0, num_computed - num_tokens))
    for job in jobs:
        report("queue_seconds", job.queue_s)
