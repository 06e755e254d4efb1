"""Compares a reward model, at load, with its own Hugging Face call on a short conversation.

Two things are compared. On the same tokens, trunk and head must give what the model's own call
gives. And the token that is pooled here should be the one that the model was trained to pool: here
it is the last response token, or the end of the checkpoint's `suffix_text`, while a chat template
may put more after end-of-turn. A model that was trained with such a template wants that text as its
suffix, and the line that is told at load says so, with the figures. This module knows no requests.
"""

from __future__ import annotations

import numpy as np
import torch

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward.plain import PlainLayout
from tokenreward.text.tokenizer import Tokenizer

_QUESTION, _ANSWER = "What is the capital of France?", "It is Paris."


def compare_with_own_call(
    checkpoint: Checkpoint, tokenizer: Tokenizer, suffix_text: str | None
) -> str:
    """One line on the pooled value of a short conversation, by our layout and by the model's own
    call.

    Args:
        checkpoint: A reward model.
        tokenizer: Its tokenizer.
        suffix_text: What the settings put after each response.

    Raises:
        CheckpointRefused: On the same tokens the two differ: trunk and head are not all that the
            model does.
    """
    prompt, response, templated = _conversation(tokenizer)
    ids = np.concatenate([prompt, response, tokenizer.suffix(suffix_text)])
    ours, own = _pooled(checkpoint, ids), _own_call(checkpoint, ids)
    bound = _bound(checkpoint, ours)
    # A classifier skips pad tokens at the end, so on a row that ends with one it reads another.
    ends_with_pad = ids[-1] == getattr(checkpoint.text_config, "pad_token_id", None)
    if own is not None and abs(ours - own) > bound and not ends_with_pad:
        raise CheckpointRefused(
            f"{type(checkpoint.model).__name__}: trunk and head differ from its own call by "
            f"{abs(ours - own):.1e}"
        )
    head = f"value head {checkpoint.value_head.note}"
    if checkpoint.head_format:
        head += f", stored as `{checkpoint.head_format}`"
    if templated is None:
        line = f"{head}; pooled value {ours:.4g}"
        if own is not None:
            line += f": differs from the model's own call by {abs(ours - own):.1e}"
        return line
    of_template, whose = _own_call(checkpoint, templated), "the model's own"
    if of_template is None:
        of_template, whose = _pooled(checkpoint, templated), "the same head's"
    line = (
        f"{head}; pooled value of a conversation {ours:.4g}, of {whose} templated call "
        f"{of_template:.4g}"
    )
    after = tokenizer.after_end_of_turn
    if abs(ours - of_template) > bound and after:
        line += f": they differ; if it was trained on its template, set `suffix_text: {after!r}`"
    return line


def _bound(checkpoint: Checkpoint, value: float) -> float:
    """What rounding in the model's dtype explains of a value.

    Rounding is of the label, which the head's affine divides by its std: a small std makes more of
    it. In a weighted sum of labels it grows with the weights, also where the labels cancel.
    """
    head = checkpoint.value_head
    label = value * head.std + head.mean
    relative = max(1e-5, 8 * float(torch.finfo(checkpoint.model.dtype).eps))
    size = max(1.0, abs(label))
    if head.label_weights is not None:
        size = max(size, float(head.label_weights.abs().sum()))
    return relative * size / head.std


def _conversation(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Prompt and response as a scorer reads them, and both as the chat template writes them.

    The third is None without a template.
    """
    is_finished = tokenizer.end_of_turn is not None
    response, _ = tokenizer.response(_ANSWER, finished=is_finished, param="response")
    messages = [{"role": "user", "content": _QUESTION}]
    templated = tokenizer.templated([*messages, {"role": "assistant", "content": _ANSWER}])
    if templated is None:
        return tokenizer.prompt_from_text(_QUESTION, param="prompt"), response, None
    return tokenizer.prompt_from_messages(messages, None, {}, param="prompt"), response, templated


def _pooled(checkpoint: Checkpoint, ids: np.ndarray) -> float:
    """The value at the last token, by the plain layout."""
    request = RowRequest(Row(ids, 1, len(ids)), Needs(values=True))
    (outputs,) = PlainLayout(checkpoint).run([request])
    assert outputs.pooled is not None
    return outputs.pooled


@torch.inference_mode()
def _own_call(checkpoint: Checkpoint, ids: np.ndarray) -> float | None:
    """The value by the model's own forward: of its pooled logit, or of the last token's.

    It is None if the model's class has no head of its own.
    """
    output = checkpoint.model(input_ids=torch.from_numpy(ids).to(checkpoint.device)[None])
    logits = getattr(output, "logits", None)
    if logits is None:
        return None
    if logits.dim() == 3:
        logits = logits[0]
    return float(checkpoint.value_head.of_logits(logits[-1:])[0])
