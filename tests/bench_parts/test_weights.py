"""The figures of a push are taken, on a model that takes no time."""

from __future__ import annotations

from bench import weights

TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def test_a_push_has_a_pause_and_takes_less_memory_than_the_model() -> None:
    pause, memory = weights.pushes(rounds=2, shape=TINY)
    assert 0 < pause.ours < 10
    assert (pause.rival, pause.judged, memory.judged) == (weights.MAX_PAUSE_S, False, False)
    assert memory.rival == weights.VOCAB_SIZE * 64 * 4 / 2**20
