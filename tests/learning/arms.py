"""One run: `python -m learning.arms REWARD ARM SEED URL FILE STEPS`.

Two rewards: `logprob` of the frozen policy itself, and the demo reward model, `rm`. Two arms each:
`scalar` is TRL's GRPOTrainer as it is, with one number per response; `dense` has one advantage per
token. All have the same policy, prompts, samples per step and learning rate, and ask the service.

| | `scalar` | `dense` |
|---|---|---|
| `logprob` | mean log-prob of the tokens | log-prob of each token less its expectation, gamma 0 |
| `rm` | score | the score, spread by the reward model's attention, gamma 1 |
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tokenreward.demo import checkpoint_path
from tokenreward.demo.corpus import user_turn
from tokenreward.demo.facts import num_right
from tokenreward.demo.world import EVALUATION_SEED, OfferPair, sample_pairs
from tokenreward_client import Client
from tokenreward_client.trainers.trl import DenseGRPO, reward_func

NUM_PROMPTS, SIZE, MAX_TOKENS, RATE = 4, 8, 64, 5e-5
EVERY, NUM_HELD_OUT, NUM_PAIRS, FIRST_SEED = 20, 128, 320, 1000
# The number per response of each reward, as `score` arguments.
SCALARS: dict[str, dict[str, Any]] = {
    "logprob": {"scorer": "logprob", "options": {"aggregation": "mean"}},
    "rm": {"scorer": "reward_model"},
}
# The entropy is minus the expected log-prob, and comes from the same pass. So under `logprob` each
# token answers for itself, and its expectation is its baseline.
DENSE: dict[str, dict[str, Any]] = {
    "logprob": {
        "score": {
            "scorers": ["logprob", "entropy"],
            "combine": {"logprob": 1.0, "entropy": 1.0},
        },
        "dense": {"gamma": 0.0, "baseline": "none"},
    },
    "rm": {"scorer": "attention_dense"},
}


class DenseTrainer(DenseGRPO, GRPOTrainer):
    pass


class Evaluation(TrainerCallback):
    """Samples the held-out prompts every few steps, and judges the responses by the facts."""

    def __init__(self, client: Client, reward: str) -> None:
        self.client, self.reward = client, reward
        self.pairs = sample_pairs(NUM_HELD_OUT, EVALUATION_SEED, "held_out")
        self.rows: list[dict[str, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if state.global_step % EVERY == 0:
            self.rows.append(self.measure(state.global_step, parts))

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self.rows.append(self.measure(state.global_step, parts))

    def measure(self, step: int, parts: dict[str, Any]) -> dict[str, float]:
        model, tokenizer = parts["model"], parts["processing_class"]
        ids = sample(model, tokenizer, self.pairs)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        counts = [num_right(pair, text) for pair, text in zip(self.pairs, texts, strict=True)]
        right, stated = (sum(numbers) for numbers in zip(*counts, strict=True))
        items = [(user_turn(pair), text) for pair, text in zip(self.pairs, texts, strict=True)]
        answers = self.client.score(items, **SCALARS[self.reward])
        faithful = [num == of > 0 for num, of in counts]
        return {
            "step": step,
            "faithful": sum(faithful) / len(counts),
            "facts_right": right / max(stated, 1),
            "facts_stated": stated / len(counts),
            "malformed": sum(of == 0 for _, of in counts) / len(counts),
            "tokens": sum(int((row != tokenizer.pad_token_id).sum()) for row in ids) / len(counts),
            "reward": sum(answer.score for answer in answers) / len(answers),
        }


def sample(model: Any, tokenizer: Any, pairs: list[OfferPair]) -> torch.Tensor:
    """A response to each prompt at temperature 1, with a seed of its own: ids [n, T]."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    prompts = [user_turn(pair) for pair in pairs]
    batch = tokenizer.apply_chat_template(
        prompts,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
        padding=True,
        tokenizer_kwargs={"padding_side": "left"},
    )
    was_training = model.training
    model.eval()
    with torch.no_grad():
        ids = model.generate(
            **batch, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=64
        )
    model.train(was_training)
    torch.set_rng_state(state)
    return ids[:, batch["input_ids"].shape[1] :]


def run(reward: str, arm: str, seed: int, url: str, steps: int) -> list[dict[str, float]]:
    """The evaluations of one run."""
    torch.set_num_threads(1)
    policy = checkpoint_path("sft")
    pairs = sample_pairs(NUM_PAIRS, FIRST_SEED + seed)
    client = Client(url)
    evaluation = Evaluation(client, reward)
    settings: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        "processing_class": AutoTokenizer.from_pretrained(policy, padding_side="left"),
        "train_dataset": Dataset.from_list([{"prompt": user_turn(pair)} for pair in pairs]),
        "callbacks": [evaluation],
        # For `dense` this is only logged: there its outcomes have no weight.
        "reward_funcs": [reward_func(client, **SCALARS[reward])],
    }
    with tempfile.TemporaryDirectory() as folder:
        settings["args"] = GRPOConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=NUM_PROMPTS * SIZE,
            num_generations=SIZE,
            max_completion_length=MAX_TOKENS,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            beta=0.0,
            seed=seed,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        )
        if arm == "scalar":
            trainer = GRPOTrainer(**settings)
        else:
            trainer = DenseTrainer(client=client, **DENSE[reward], **settings)
        trainer.train()
    return evaluation.rows


if __name__ == "__main__":
    what, name, number, address, file, num_steps = sys.argv[1:]
    rows = run(what, name, int(number), address, int(num_steps))
    Path(file).write_text(json.dumps(rows))
