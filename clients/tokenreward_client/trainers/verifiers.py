"""verifiers (0.4): a task's `@vf.reward` method that asks for the score of a trace's last reply.

It imports nothing of verifiers, whose rewards are numbers. One advantage per token of a trace is
the trainer's to assign: for prime-rl, `DenseAlgorithm` does.
"""

from __future__ import annotations

from typing import Any

from tokenreward_client.client import AsyncClient
from tokenreward_client.errors import BadArgument
from tokenreward_client.trainers._answers import check_one_reward


async def trace_score(
    client: AsyncClient, trace: Any, scorer: str | None = None, **settings: Any
) -> float:
    """The score of the last reply, with the messages before it as the prompt.

        class Offer(vf.Task):
            @vf.reward(weight=1.0)
            async def helpful(self, trace) -> float:
                return await trace_score(client, trace, "reward_model")

    Messages go as texts, in the tokens of the scorer, whatever the policy's tokenizer is.

    Args:
        client: Asks the service.
        trace: verifiers' `Trace`. Of several branches the last counts, as in `trace.last_reply`.
        scorer: The scorer's name, `endogenous` by default.
        **settings: Other keywords of `client.score`: `options`, `credit`, `timeout_s`, ...

    Raises:
        BadArgument: The trace does not end in a reply, calls tools, or the scorer gives no score;
            or the settings ask for several rewards, or let errors of items pass.
        ClientError: There is no score. verifiers then marks the trace as failed.
    """
    check_one_reward(settings)
    messages = list(trace.messages)
    if not messages or messages[-1].role != "assistant":
        raise BadArgument("the trace does not end in a reply of the policy")
    if any(getattr(message, "tool_calls", None) for message in messages):
        raise BadArgument("a trace that calls tools is scored by ids: see `DenseAlgorithm`")
    prompt = [{"role": each.role, "content": each.content} for each in messages[:-1]]
    item = {"prompt": prompt, "response": messages[-1].content}
    [answer] = await client.score([item], scorer, **settings)
    if answer.score is None:
        raise BadArgument("the scorer gives no score, and verifiers takes nothing else")
    return answer.score
