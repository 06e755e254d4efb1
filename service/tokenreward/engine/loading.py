"""From a deployment's settings to a checkpoint, its tokenizer, and the layout that serves it.

It reports its progress line by line. It knows no requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tokenreward.checkpoints.adapter_config import adapter_template
from tokenreward.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    refuse_longer,
)
from tokenreward.checkpoints.default_dtype import probing
from tokenreward.checkpoints.load_failure import tokens_beyond_embedding, why_not_probed
from tokenreward.checkpoints.reference import with_reference
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.engine.plan import ServedScorer, check_options, needs_of
from tokenreward.forward.layout import Layout
from tokenreward.forward.own_call import compare_with_own_call
from tokenreward.forward.pair import choose_layouts
from tokenreward.forward.two_way import choose_two_way_layout, pair_line, reads_segments
from tokenreward.settings import DeploymentSettings
from tokenreward.text.tokenizer import Tokenizer

Say = Callable[[str], None]


def load_checkpoint_of(
    settings: DeploymentSettings, scorers: Mapping[str, ServedScorer], say: Say
) -> tuple[Checkpoint, Tokenizer]:
    """Loads a deployment's checkpoint, and its reference if a scorer reads one.

    Raises:
        SettingsError: The settings do not fit the checkpoint.
        CheckpointRefused: The checkpoint cannot be served.
    """
    say(f"{settings.name}: loading {settings.model}")
    began = time.monotonic()
    checkpoint = load_checkpoint(settings)
    max_tokens, limit = settings.max_sequence_tokens or checkpoint.max_positions, "sequence"
    if max_tokens is None:  # no longer text can be scored
        max_tokens, limit = settings.max_queued_tokens, "queued"
    tokenizer = Tokenizer(
        checkpoint.tokenizer,
        checkpoint.eos_ids,
        max_tokens,
        reads_pairs=checkpoint.is_classifier and not checkpoint.tokenizer.chat_template,
        has_segments=checkpoint.is_classifier and reads_segments(checkpoint),
        template_kwargs=settings.chat_template_kwargs,
        limit=f"max_{limit}_tokens",
    )
    beyond = tokens_beyond_embedding(checkpoint, tokenizer)
    if beyond is not None and settings.task == "reward_model":
        raise CheckpointRefused(f"`{settings.checkpoint}` cannot be served: {beyond}")
    if beyond is not None:  # prompts that are raw text or ids may do without
        say(f"{settings.name}: messages cannot be scored: {beyond}")
    check_options(scorers.values(), settings, tokenizer)
    if "reference" in needs_of(scorers.values()):
        checkpoint = with_reference(checkpoint, settings, tokenizer)
    refuse_longer(checkpoint, settings)
    if checkpoint.adapter_base not in (None, settings.checkpoint):
        say(
            f"{settings.name}: the adapter names `{checkpoint.adapter_base}` as its base, the "
            f"checkpoint is `{settings.checkpoint}`"
        )
    if adapter_template(settings) not in (None, checkpoint.tokenizer.chat_template):
        say(
            f"{settings.name}: the adapter was saved with another chat template than that of the "
            "checkpoint, which is the one in use: `chat_template` takes the adapter's"
        )
    if checkpoint.placement.is_split:
        say(f"{settings.name}: {checkpoint.placement.note}")
    say(f"{settings.name}: weights loaded in {time.monotonic() - began:.1f} s, probing")
    return checkpoint, tokenizer


def load_layout(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    settings: DeploymentSettings,
    scorers: Mapping[str, ServedScorer],
    say: Say,
) -> Layout:
    """Probes a checkpoint, which also warms it. Raises CheckpointRefused."""
    needs = needs_of(scorers.values())

    def say_of(line: str) -> None:
        say(f"{settings.name}: {line}")

    try:
        with probing():  # it may be a second engine, while a push loads the weights for the first
            if checkpoint.is_classifier:
                say_of(pair_line(checkpoint, tokenizer, settings.suffix_text))
                return choose_two_way_layout(checkpoint, needs["policy"], say=say_of)
            if settings.task == "reward_model":
                comparison = compare_with_own_call(
                    checkpoint,
                    tokenizer,
                    settings.suffix_text,
                    reads_conversation=settings.scored_text == "conversation",
                    pools=any(served.pools for served in scorers.values()),
                )
                say_of(comparison)
            return choose_layouts(checkpoint, needs, say=say_of)
    except CheckpointRefused:
        raise
    except Exception as error:  # the model's own code, or torch's, raises errors of all kinds
        raise CheckpointRefused(why_not_probed(error, settings)) from error
