"""Loads the model that a policy is compared with: another checkpoint, or the policy itself, to be
read without its adapter.

It loads and compares tokenizers; it runs no rows.
"""

from __future__ import annotations

from dataclasses import replace

from tokenreward.alignment import fingerprint
from tokenreward.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.settings import DeploymentSettings
from tokenreward.text.tokenizer import Tokenizer


def with_reference(
    checkpoint: Checkpoint, settings: DeploymentSettings, tokenizer: Tokenizer
) -> Checkpoint:
    """The same checkpoint with a `reference`.

    Args:
        checkpoint: The policy.
        settings: The deployment's. Without a `reference_checkpoint`, the reference is the policy.
        tokenizer: The policy's.

    Raises:
        CheckpointRefused: The reference cannot be loaded, or its tokens are not the policy's.
    """
    if settings.reference_checkpoint is None:
        return replace(checkpoint, reference=checkpoint)
    reference = load_checkpoint(reference_settings(settings), checkpoint.placement.devices)
    ours, theirs = tokenizer.fingerprint, fingerprint(reference.tokenizer.get_vocab())
    if ours != theirs:
        raise CheckpointRefused(
            f"the tokenizers of `{settings.checkpoint}` ({ours}) and its reference "
            f"`{settings.reference_checkpoint}` ({theirs}) differ: their log-probabilities would "
            "be of other tokens"
        )
    return replace(checkpoint, reference=reference)


def reference_settings(settings: DeploymentSettings) -> DeploymentSettings:
    """The settings of a deployment's reference that is a checkpoint of its own: it loads as the
    policy does (task, dtype, device, ...), but from its own place and without an adapter."""
    changes = {
        "checkpoint": settings.reference_checkpoint,
        "revision": settings.reference_revision,
        "adapter": None,
        "adapter_revision": None,
        "reference_checkpoint": None,
        "reference_revision": None,
    }
    return settings.model_copy(update=changes)
