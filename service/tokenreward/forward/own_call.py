"""Where a reward model is read, beside the plain Hugging Face call: trunk and head must be the
whole model, and the token that we pool should be the one that the model was trained to pool.

Ours is the last response token, or the end of the checkpoint's `suffix_text`. A template may put
more after end-of-turn; a model trained with it wants that text as its suffix. This is said at load,
with the figures.
"""

from __future__ import annotations

import numpy as np
import torch

from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward.plain import PlainLayout
from tokenreward.text.tokenizer import Tokenizer

_QUESTION, _ANSWER = "What is the capital of France?", "It is Paris."


def compare_with_own_call(
    checkpoint: Checkpoint, vocabulary: Tokenizer, suffix_text: str | None
) -> str:
    """One line on the pooled value of a short conversation, ours and the model's own.

    Raises CheckpointRefused if on the same tokens they differ: then trunk and head are not all that
    the model does.
    """
    prompt, response, templated = _conversation(vocabulary)
    ours = np.concatenate([prompt, response, vocabulary.suffix(suffix_text)])
    mine, same = _pooled(checkpoint, ours), _own_call(checkpoint, ours)
    bound = _bound(checkpoint, mine)
    if same is not None and abs(mine - same) > bound and ours[-1] != _pad_id(checkpoint):
        name = type(checkpoint.model).__name__
        raise CheckpointRefused(
            f"{name}: trunk and head differ from its own call by {abs(mine - same):.1e}"
        )
    if templated is None:
        difference = (
            "" if same is None else f": differs from the model's own call by {abs(mine - same):.1e}"
        )
        return f"{_head(checkpoint)}; pooled value {mine:.4g}{difference}"
    own, whose = _own_call(checkpoint, templated), "the model's own"
    if own is None:
        own, whose = _pooled(checkpoint, templated), "the same head's"
    line = (
        f"{_head(checkpoint)}; pooled value of a conversation {mine:.4g}, of {whose} templated "
        f"call {own:.4g}"
    )
    if abs(mine - own) <= bound:
        return line
    after = vocabulary.after_end_of_turn
    return (
        f"{line}: they differ; if it was trained on its template, set `suffix_text: {after!r}`"
        if after
        else line
    )


def _head(checkpoint: Checkpoint) -> str:
    stored = f", stored as `{checkpoint.head_format}`" if checkpoint.head_format else ""
    return f"value head {checkpoint.value_head.note}{stored}"


def _bound(checkpoint: Checkpoint, value: float) -> float:
    """What rounding in the model's dtype explains, of a label; a small std makes more of it."""
    head = checkpoint.value_head
    label = value * head.std + head.mean
    return (
        max(1e-5, 8 * float(torch.finfo(checkpoint.model.dtype).eps))
        * max(1.0, abs(label))
        / head.std
    )


def _pad_id(checkpoint: Checkpoint) -> int | None:
    pad: int | None = getattr(checkpoint.text_config, "pad_token_id", None)
    return pad


def _conversation(vocabulary: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Prompt and response as we read them, and the whole as the template writes it (None without a
    template)."""
    response = vocabulary.response(
        _ANSWER, finished=vocabulary.end_of_turn is not None, param="response"
    ).ids
    messages = [{"role": "user", "content": _QUESTION}]
    templated = vocabulary.templated([*messages, {"role": "assistant", "content": _ANSWER}])
    if templated is None:
        return vocabulary.prompt_from_text(_QUESTION, param="prompt"), response, None
    return vocabulary.prompt_from_messages(messages, None, {}, param="prompt"), response, templated


def _pooled(checkpoint: Checkpoint, ids: np.ndarray) -> float:
    (outputs,) = PlainLayout(checkpoint).run(
        [RowRequest(Row(ids, 1, len(ids)), Needs(values=True))]
    )
    assert outputs.pooled is not None
    return outputs.pooled


@torch.inference_mode()
def _own_call(checkpoint: Checkpoint, ids: np.ndarray) -> float | None:
    """The value by the model's own forward, a pooled logit or the last token's; None if it has no
    head of its own."""
    with torch.inference_mode():
        output = checkpoint.model(input_ids=torch.from_numpy(ids).to(checkpoint.device)[None])
    if getattr(output, "logits", None) is None:
        return None
    logits = output.logits[0] if output.logits.dim() == 3 else output.logits
    return float(checkpoint.value_head.of_logits(logits[-1:])[0])
