"""A loop without a trainer: sample, ask for a reward per token, take a step.

python docs/examples/reinforce.py http://127.0.0.1:8000
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenreward.demo import checkpoint_path, example_pair
from tokenreward_client import Client, fingerprint

policy = AutoModelForCausalLM.from_pretrained(checkpoint_path("sft"), dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("sft"))
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5)
turns = [{"role": "user", "content": example_pair().prompt}]
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
group = torch.tensor([prompt] * 8)
ids_of = fingerprint(tokenizer.get_vocab())
with Client(sys.argv[1]) as client:
    for step in range(5):
        rows = policy.generate(group, do_sample=True, top_k=0, max_new_tokens=48)
        ids = rows[:, len(prompt) :]
        is_end = (ids == tokenizer.eos_token_id).int()
        mask = is_end.cumsum(1) - is_end == 0  # the tokens up to the first end, and that one
        items = [(prompt, row[keep].tolist()) for row, keep in zip(ids, mask, strict=True)]
        rewards = torch.zeros(ids.shape)
        for row, answer in enumerate(client.score(items, "logprob", fingerprint=ids_of)):
            rewards[row, : len(answer.rewards)] = torch.from_numpy(answer.rewards)
        returns = rewards.flip(1).cumsum(1).flip(1)  # a token's reward and all later ones
        baseline = (returns * mask).sum(0) / mask.sum(0).clamp(min=1)
        logits = policy(rows).logits[:, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(2, ids.unsqueeze(2)).squeeze(2)
        loss = -((returns - baseline) * log_probs * mask).sum() / mask.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: reward {rewards.sum(1).mean():.2f} per response")
