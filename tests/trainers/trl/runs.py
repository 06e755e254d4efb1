"""A run of one of TRL's trainers on the demo's policy, and the same loop written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tokenreward.demo.corpus import user_turn
from tokenreward.demo.world import sample_pairs
from tokenreward_client import Client
from tokenreward_client.trainers.trl import DenseGRPO

NUM_STEPS, NUM_PROMPTS, SIZE, LENGTH, RATE = 20, 2, 4, 32, 1e-4
EPSILON = 1e-6  # of Adam, whose own 1e-8 is below the rounding of the smallest gradients
SETTINGS = {
    "per_device_train_batch_size": NUM_PROMPTS * SIZE,
    "num_generations": SIZE,
    "max_completion_length": LENGTH,
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "adam_epsilon": EPSILON,
    "beta": 0.0,
    "shuffle_dataset": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


class DenseTrainer(DenseGRPO, GRPOTrainer):
    pass


class Recording:
    """A reward function, and what went through it."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, []
        self.__name__ = function.__name__

    async def __call__(self, **columns: Any) -> Any:
        rewards = await self.function(**columns)
        self.calls.append((columns["prompts"], columns["completions"], rewards))
        return rewards


class Seeds(TrainerCallback):
    """Every step begins from a seed of its own, in TRL's loop as in ours."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        torch.manual_seed(seed_of(state.global_step))


def seed_of(step: int) -> int:
    return 1000 + step


def prompts(num_prompts: int = NUM_STEPS * NUM_PROMPTS) -> list[list[dict[str, str]]]:
    return [user_turn(pair) for pair in sample_pairs(num_prompts, 5)]


def dataset() -> Dataset:
    return Dataset.from_list([{"prompt": prompt} for prompt in prompts()])


def train(
    kind: Any, policy: Any, folder: Path, *, rows: Any = None, config: Any = None, **parts: Any
) -> Any:
    """A trainer of this kind that has trained; GRPOConfig is the default of `config`."""
    model, tokenizer = policy
    settings = {**SETTINGS, "output_dir": str(folder), "max_steps": parts.pop("steps", NUM_STEPS)}
    trainer = kind(
        model=model,
        args=(config or GRPOConfig)(**settings),
        train_dataset=Dataset.from_list(rows) if rows else dataset(),
        processing_class=tokenizer,
        callbacks=[Seeds(), *parts.pop("callbacks", [])],
        **parts,
    )
    trainer.train()
    return trainer


def train_by_hand(policy: Any, client: Client, scorer: str, gamma: float) -> Any:
    """What DenseGRPO does with TRL, written out: the policy after NUM_STEPS."""
    model, tokenizer = policy
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON, weight_decay=0.0)
    every_prompt = prompts()
    for step in range(NUM_STEPS):
        torch.manual_seed(seed_of(step))
        turns = every_prompt[step * NUM_PROMPTS : (step + 1) * NUM_PROMPTS]
        prompt_ids = [
            tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
            for turn in turns
            for _ in range(SIZE)
        ]
        width = max(map(len, prompt_ids))
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompt_ids])
        there = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompt_ids])
        with torch.no_grad():
            how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": LENGTH}
            both = model.generate(ids, attention_mask=there, eos_token_id=end, **how)
        rows = both[:, width:].tolist()
        completions = [row[: [*row, end].index(end) + 1] for row in rows]
        items = list(zip(prompt_ids, completions, strict=True))
        rewards = [answer.rewards.tolist() for answer in client.score(items, scorer)]
        advantages = naive_advantages(rewards, gamma)
        longest = max(map(len, completions))
        mask = torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in completions])
        rows = torch.tensor([c + [pad] * (longest - len(c)) for c in completions])
        order = torch.randperm(len(rows))  # TRL shuffles; sums in its order have its rounding
        inputs = torch.cat([ids, rows], dim=1)[order]
        attention = torch.cat([there, mask], dim=1)[order]
        logits = model(input_ids=inputs, attention_mask=attention).logits[:, width - 1 : -1]
        picked = logits.log_softmax(-1).gather(2, rows[order].unsqueeze(2)).squeeze(2)
        loss = -(torch.tensor(advantages)[order] * picked * mask[order]).sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def naive_advantages(rewards: list[list[float]], gamma: float) -> list[list[float]]:
    """Reward-to-go less its mean over those of the group that are as long, over the root mean
    square of the batch; padded with zeros."""
    longest = max(map(len, rewards))
    returns = []
    for row in rewards:
        total, later = [0.0] * len(row), 0.0
        for t in reversed(range(len(row))):
            later = row[t] + gamma * later
            total[t] = later
        returns.append(total)
    advantages = []
    for i, row in enumerate(returns):
        group = returns[i - i % SIZE : i - i % SIZE + SIZE]
        alive = [[other[t] for other in group if len(other) > t] for t in range(len(row))]
        advantages.append(
            [g - sum(peers) / len(peers) for g, peers in zip(row, alive, strict=True)]
        )
    flat = [a for row in advantages for a in row]
    scale = (sum(a * a for a in flat) / len(flat)) ** 0.5 + 1e-4
    return [[a / scale for a in row] + [0.0] * (longest - len(row)) for row in advantages]
