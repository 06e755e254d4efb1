"""The model that a policy is compared with: another checkpoint, or the policy read without its
adapter.

It loads and compares tokenizers, and runs no rows.
"""

from __future__ import annotations

from dataclasses import replace

from tokenreward.alignment import fingerprint
from tokenreward.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.settings import DeploymentSettings
from tokenreward.text.tokenizer import Tokenizer


def with_reference(
    checkpoint: Checkpoint, settings: DeploymentSettings, vocabulary: Tokenizer
) -> Checkpoint:
    """The checkpoint, holding its reference: `reference_checkpoint`, or itself to be read without
    its adapter. `vocabulary`: the checkpoint's.

    Raises CheckpointRefused, also for a reference whose tokens are others.
    """
    if settings.reference_checkpoint is None:
        return replace(checkpoint, reference=checkpoint)
    alone = {
        "adapter": None,
        "adapter_revision": None,
        "reference_checkpoint": None,
        "reference_revision": None,
    }
    named = {"checkpoint": settings.reference_checkpoint, "revision": settings.reference_revision}
    reference = load_checkpoint(settings.model_copy(update={**alone, **named}))
    ours, theirs = vocabulary.fingerprint, fingerprint(reference.tokenizer.get_vocab())
    if ours != theirs:
        raise CheckpointRefused(
            f"the tokenizers of `{settings.checkpoint}` ({ours}) and its reference "
            f"`{settings.reference_checkpoint}` "
            f"({theirs}) differ: their log-probabilities would be of other tokens"
        )
    return replace(checkpoint, reference=reference)
