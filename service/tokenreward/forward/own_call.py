"""Compares a reward model, at load, with its own Hugging Face call on a short conversation.

Two things are compared. On the same tokens, trunk and head must give what the model's own call
gives. And the tokens should be those that the model was trained on: the whole templated
conversation. Here a response is read as it is, and the last response token is pooled, or the end of
the checkpoint's `suffix_text`, while a chat template may trim a response or write more in front of
it and behind. Responses of several shapes are compared token by token. The line that is told at
load names the tokens that differ, and the settings with which none do. This module knows no
requests.
"""

from __future__ import annotations

import numpy as np
import torch

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward.plain import PlainLayout
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.text.trained_tokens import ANSWER, QUESTION, advice


def compare_with_own_call(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    suffix_text: str | None,
    *,
    reads_conversation: bool = False,
    pools: bool = True,
) -> str:
    """A line on the pooled value of a short conversation, by our layout and the model's own call.

    Args:
        checkpoint: A reward model.
        tokenizer: Its tokenizer.
        suffix_text: What the settings put after each response.
        reads_conversation: Whether responses are read as the template renders them.
        pools: Whether a scorer pools a token behind a response. If not, no setting is named.

    Raises:
        CheckpointRefused: On the same tokens the two differ: the model does more.
    """
    prompt, response, templated = _conversation(tokenizer)
    ids = np.concatenate([prompt, response, tokenizer.suffix(suffix_text)])
    if reads_conversation and templated is not None:
        ids = templated
    padding = skipped_token(checkpoint)
    # A suffix is the operator's word: its last token is pooled, whatever it is.
    skipped_id = None if suffix_text else padding
    ours, own = _pooled(checkpoint, ids, skipped_id), _own_call(checkpoint, ids)
    # A classifier that skips pad tokens where we do not reads another token.
    pad_id = getattr(checkpoint.text_config, "pad_token_id", None)
    same_token = skipped_id is not None or ids[-1] != pad_id
    if own is not None and same_token:
        _refuse_more(checkpoint, ours, own)
    form = checkpoint.head_format
    line = f"value head {checkpoint.value_head.note}" + f", stored as `{form}`" * bool(form)
    line += f"; pooled value {'' if templated is None else 'of a conversation '}{ours:.4g}"
    if templated is None and own is not None:
        line += f": differs from the model's own call by {abs(ours - own):.1e}"
    if templated is None:
        return line
    of_template, whose = _own_call(checkpoint, templated), "the model's own"
    if of_template is None or not same_token:
        of_template, whose = _pooled(checkpoint, templated, skipped_id), "the same head's"
    line += f", of {whose} templated call {of_template:.4g}"
    if ids[-1] == skipped_id:
        line += f"; pooled before {tokenizer.text(ids[-1:])!r}, which its class takes for padding"
    if pools:
        line += advice(tokenizer, suffix_text, padding, reads_conversation=reads_conversation)
    return line


def _refuse_more(checkpoint: Checkpoint, ours: float, own: float) -> None:
    """Refuses a model that does more than trunk and head, by its values of the same tokens.

    Raises:
        CheckpointRefused: They differ by more than rounding explains.
    """
    if abs(ours - own) > _bound(checkpoint, ours):
        raise CheckpointRefused(
            f"{type(checkpoint.model).__name__}: trunk and head differ from its own call by "
            f"{abs(ours - own):.1e}"
        )


def skipped_token(checkpoint: Checkpoint) -> int | None:
    """The token that the model's own class passes over at the end of a row before it pools: its
    padding. None if it pools the last token, whatever that is.

    A classifier of transformers pools the last token that is no padding, also in training. TRL
    takes EOS for padding where a tokenizer has none, as those of Llama 3 and Mistral: then the head
    was trained on the token before EOS. A head that such a class did not train was trained on the
    last token of the attention mask, EOS itself: OpenRLHF's is one.
    """
    own = type(checkpoint.model)
    pools = own.__name__.endswith("ForSequenceClassification")
    if checkpoint.is_classifier or not pools or not own.__module__.startswith("transformers."):
        return None
    if getattr(checkpoint.model.config, "pools_last_token", False):
        return None
    pad_id = getattr(checkpoint.text_config, "pad_token_id", None)
    return None if pad_id is None else int(pad_id)


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
    response, _ = tokenizer.response(ANSWER, finished=is_finished, param="response")
    templated = tokenizer.templated([*QUESTION, {"role": "assistant", "content": ANSWER}])
    if templated is None:
        return tokenizer.prompt_from_text(QUESTION[0]["content"], param="prompt"), response, None
    return tokenizer.prompt_from_messages(QUESTION, None, {}, param="prompt"), response, templated


def _pooled(checkpoint: Checkpoint, ids: np.ndarray, skipped_id: int | None) -> float:
    """The value at the last token that is not skipped, by the plain layout."""
    read = np.flatnonzero(ids != skipped_id)
    ids = ids[: int(read[-1]) + 1]
    request = RowRequest(Row(ids, 1, len(ids)), Needs(values=True))
    (outputs,) = PlainLayout(checkpoint).run([request])
    assert outputs.pooled is not None
    return outputs.pooled


@torch.inference_mode()
def _own_call(checkpoint: Checkpoint, ids: np.ndarray) -> float | None:
    """The value by the model's own forward: of its pooled logit, or of the last token's.

    It is None if the model's class has no head of its own.
    """
    output = checkpoint.model(input_ids=torch.from_numpy(ids).to(checkpoint.placement.first)[None])
    logits = getattr(output, "logits", None)
    if logits is None:
        return None
    if logits.dim() == 3:
        logits = logits[0]
    return float(checkpoint.value_head.of_logits(logits[-1:])[0])
