"""TRL's GRPOTrainer on the demo policy, with a reward and an advantage per token."""

import sys

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tokenreward.demo import checkpoint_path
from tokenreward.demo.corpus import user_turn
from tokenreward.demo.world import sample_pairs
from tokenreward_client import AsyncClient, Client
from tokenreward_client.trainers.trl import DenseGRPO, reward_func


class DenseTrainer(DenseGRPO, GRPOTrainer):
    """TRL's trainer, whose advantages are per token."""


url = sys.argv[1]
prompts = [{"prompt": user_turn(pair)} for pair in sample_pairs(16, seed=1)]
trainer = DenseTrainer(
    model=str(checkpoint_path("sft")),
    reward_funcs=[reward_func(AsyncClient(url), "reward_model", on_error="none")],
    args=GRPOConfig(
        output_dir="build/trl",
        max_steps=4,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=64,
        learning_rate=1e-5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        disable_tqdm=True,
    ),
    train_dataset=Dataset.from_list(prompts),
    client=Client(url),
    scorer="logprob",
    dense={"gamma": 1.0, "baseline": "position"},
    on_error="none",
)
trainer.train()
for row in trainer.state.log_history[:-1]:
    names = ("dense/reward", "dense/missing", "rewards/reward_model/mean", "grad_norm")
    print(row["step"], {name: round(row[name], 2) for name in names})
