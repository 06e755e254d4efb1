"""The rewards of one response, written straight from the formulas, one sequence at a time in
float32.

For judging the demo models and for checking faster code against. It does not know batches, servers
or the world. T is the number of response tokens, end-of-turn included; logits[t] predicts response
token t, and logits[T] is what the model says after the end.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tokenreward.demo.corpus import Conversation

BETA_ABC = 0.8
BETA_IMPLICIT = 0.1


def encode(
    tokenizer: PreTrainedTokenizerFast, prompt: Conversation, response: str
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """The prompt through the chat template, the response on its own, end-of-turn behind it.

    Returns:
        The prompt's ids, the response's ids [T], and the character range of each response token;
        end-of-turn has none, so there are T - 1 of them.
    """
    prompt_ids = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=False
    )
    encoding = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
    response_ids = [*encoding["input_ids"], tokenizer.eos_token_id]
    return prompt_ids, response_ids, encoding["offset_mapping"]


@torch.no_grad()
def response_logits(
    model: PreTrainedModel, prompt_ids: list[int], response_ids: list[int]
) -> Tensor:
    """Raw logits, (T + 1, vocabulary): one row before each response token and one after the
    last."""
    ids = torch.tensor([prompt_ids + response_ids])
    logits: Tensor = model(input_ids=ids).logits[0].float()
    return logits[len(prompt_ids) - 1 :]


def logprob(logits: Tensor, response_ids: list[int]) -> Tensor:
    """r_t = log softmax(Q(s_t, .))[a_t]."""
    actions = torch.tensor(response_ids)
    return logits[:-1].log_softmax(-1).gather(1, actions[:, None])[:, 0]


def soft_bellman(logits: Tensor, response_ids: list[int]) -> Tensor:
    """r_t = Q(s_t, a_t) - V(s_{t+1}), V = logsumexp Q, and V = 0 after end-of-turn."""
    actions = torch.tensor(response_ids)
    next_value = logits[1:].logsumexp(-1)
    next_value[-1] = 0.0
    return logits[:-1].gather(1, actions[:, None])[:, 0] - next_value


def implicit(policy_logits: Tensor, reference_logits: Tensor, response_ids: list[int]) -> Tensor:
    """r_t = beta * (log pi - log pi_ref)."""
    return BETA_IMPLICIT * (
        logprob(policy_logits, response_ids) - logprob(reference_logits, response_ids)
    )


@torch.no_grad()
def reward_and_attention(
    model: PreTrainedModel, prompt_ids: list[int], response_ids: list[int]
) -> tuple[float, Tensor]:
    """The score, and the last layer's attention of end-of-turn over the response (mean over heads,
    sum 1).

    The model must run with eager attention, which is the one that returns its weights.
    """
    ids = torch.tensor([prompt_ids + response_ids])
    output = model(input_ids=ids, output_attentions=True)
    row = output.attentions[-1][0, :, -1, len(prompt_ids) :].float().mean(0)
    return float(output.logits[0, 0]), row / row.sum()


def attention_dense(score: float, weights: Tensor) -> Tensor:
    """r_t = beta * R * w_t + [t = last] * (1 - beta) * R."""
    rewards = BETA_ABC * score * weights
    rewards[-1] += (1 - BETA_ABC) * score
    return rewards


def last(score: float, num_tokens: int) -> Tensor:
    """R on the last token, 0 before."""
    rewards = torch.zeros(num_tokens)
    rewards[-1] = score
    return rewards


def uniform(score: float, num_tokens: int) -> Tensor:
    """R / T everywhere."""
    return torch.full((num_tokens,), score / num_tokens)
