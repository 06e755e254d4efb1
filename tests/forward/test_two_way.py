"""Encoders and encoder-decoders: the score is their own class's, of prompt and response as their
tokenizer pairs two texts, or of one text as it writes that, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from fakes import tiny
from fakes.pairs import name_inputs, pairing_tokenizer
from tokenreward.checkpoints.checkpoint import CheckpointRefused, load_checkpoint
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.engine import Engine
from tokenreward.errors import CreditNotSupported
from tokenreward.forward.two_way import TwoWayLayout
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import ItemResult, RewardsRequest, parse

SIZES = {
    "vocab_size": tiny.VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": tiny.PAD_ID,
    "bos_token_id": tiny.BOS_ID,
    "eos_token_id": tiny.END_ID,
    "num_labels": 1,
}
T5 = {
    "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": tiny.PAD_ID,
}  # fmt: skip
CLASSES = {
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZES)),
    "roberta": lambda: tf.RobertaForSequenceClassification(
        tf.RobertaConfig(**SIZES, type_vocab_size=1)
    ),
    "deberta": lambda: tf.DebertaV2ForSequenceClassification(
        tf.DebertaV2Config(
            **SIZES,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
        )
    ),
    "modernbert": lambda: tf.ModernBertForSequenceClassification(
        tf.ModernBertConfig(**SIZES, classifier_pooling="mean", local_attention=8)
    ),
    "t5": lambda: tf.T5ForSequenceClassification(tf.T5Config(**SIZES, **T5)),
}
WITH_SEGMENTS = ("bert", "deberta")  # of the tokenizer: this DeBERTa passes over them
QUESTION, ANSWERS = "What is 2+2?", ("It is 4. Yes, 2+2 = 4; no doubt at all.", "No.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A reward model of each class, saved with its tokenizer."""
    root, saved = tmp_path_factory.mktemp("encoders"), {}
    for name, build in CLASSES.items():
        torch.manual_seed(0)
        model = build()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(root / name)
        pairing_tokenizer(name).save_pretrained(root / name)
        saved[name] = root / name
    for name in WITH_SEGMENTS:
        name_inputs(saved[name])
    return saved


def settings(folder: Path, *scorers: str, **fields: Any) -> DeploymentSettings:
    return DeploymentSettings(
        name="x",
        checkpoint=str(folder),
        task="reward_model",
        scorers=[{"type": scorer} for scorer in scorers],
        **fields,
    )


def own_score(folder: Path, name: str, *texts: str) -> float:
    """The class's own call on a text, or on a pair of them, in float64."""
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(*texts, return_tensors="pt")
    model = tf.AutoModelForSequenceClassification.from_pretrained(folder).double().eval()
    assert ("token_type_ids" in inputs) == (name in WITH_SEGMENTS)
    with torch.inference_mode():
        return float(model(**inputs).logits[0, 0])


async def results(
    engine: Engine, items: list[dict[str, Any]] | None = None, **fields: Any
) -> list[ItemResult]:
    items = items or [{"prompt": QUESTION, "response": answer} for answer in ANSWERS]
    try:
        return (await engine.score(parse(RewardsRequest, {"items": items, **fields}))).items
    finally:
        await engine.close()


@pytest.mark.parametrize("name", CLASSES)
async def test_the_score_is_the_classes_own_of_question_and_answer(
    folders: dict[str, Path], name: str
) -> None:
    engine = Engine.load(settings(folders[name], "reward_model"))
    (listing,) = engine.describe()
    assert listing["layout"] == "padded"
    assert listing["credits"] == ["last", "uniform", "discount"]
    for result, answer in zip(
        await results(engine, scorer="reward_model", credit={"name": "uniform"}),
        ANSWERS,
        strict=True,
    ):
        truth = own_score(folders[name], name, QUESTION, answer)
        assert result.error is None
        assert result.score == pytest.approx(truth, abs=1e-5 * max(1.0, abs(truth)))
        assert sum(result.rewards) == pytest.approx(truth, abs=1e-5 * max(1.0, abs(truth)))


async def sequences(folder: Path, *items: dict[str, Any]) -> list[ItemResult]:
    """The results of items whose prompt is scored, too."""
    engine = Engine.load(settings(folder, "reward_model"))
    items_of_all = [{**item, "whole": "sequence"} for item in items]
    return await results(engine, items_of_all, scorer="reward_model", return_tokens=True)


def token_ids(result: ItemResult) -> list[int]:
    return [token.id for token in result.tokens or ()]


@pytest.mark.parametrize("name", CLASSES)
async def test_a_text_alone_is_read_as_the_tokenizer_writes_one_finished_or_not(
    folders: dict[str, Path], name: str
) -> None:
    ids = tf.AutoTokenizer.from_pretrained(folders[name])(ANSWERS[0])["input_ids"]
    text = {"prompt": "", "response": ANSWERS[0]}
    forms = [text, {**text, "finished": True}, {**text, "finished": False}]
    forms += [{"prompt": [], "response": ids}, {"prompt": "", "response": ids}]
    truth = own_score(folders[name], name, ANSWERS[0])
    for result in await sequences(folders[name], *forms):
        assert result.error is None
        assert token_ids(result) == ids
        assert result.score == pytest.approx(truth, abs=1e-5 * max(1.0, abs(truth)))


@pytest.mark.parametrize("name", CLASSES)
async def test_a_pair_is_read_as_the_tokenizer_writes_one_also_where_the_prompt_is_scored(
    folders: dict[str, Path], name: str
) -> None:
    ids = tf.AutoTokenizer.from_pretrained(folders[name])(QUESTION, ANSWERS[0])["input_ids"]
    num_prompt = len(ids) - ids[::-1].index(tiny.END_ID, 1)
    pair = {"prompt": QUESTION, "response": ANSWERS[0]}
    cut = {"prompt": ids[:num_prompt], "response": ids[num_prompt:]}
    truth = own_score(folders[name], name, QUESTION, ANSWERS[0])
    for result in await sequences(folders[name], pair, cut, {"prompt": [], "response": ids}):
        assert result.error is None
        assert token_ids(result) == ids
        assert result.score == pytest.approx(truth, abs=1e-5 * max(1.0, abs(truth)))


@pytest.mark.parametrize("name", ["bert", "deberta", "roberta"])
async def test_ids_of_three_texts_are_refused_only_where_the_model_is_told_the_second(
    folders: dict[str, Path], name: str
) -> None:
    three = [tiny.BOS_ID, 20, tiny.END_ID, 30, tiny.END_ID, 40, tiny.END_ID]
    whole = {"prompt": [], "response": three}
    spelled = {"prompt": "", "response": "4<|end|>Yes<|end|>No"}
    cut = {"prompt": three[:3], "response": three[3:]}
    refused, *others = await sequences(folders[name], whole, spelled, cut)
    assert [result.error for result in others] == [None, None]
    truth = own_score(folders[name], name, spelled["response"])
    assert others[0].score == pytest.approx(truth, abs=1e-5 * max(1.0, abs(truth)))
    assert (refused.error is not None) == (name == "bert")
    if refused.error is not None:
        assert refused.error.code == "unsupported_text"
        assert refused.error.param == "items[0].response"
        assert "2 separators" in refused.error.message


@pytest.mark.parametrize("name", ["bert", "modernbert", "t5"])
async def test_attention_is_what_the_pooled_token_pays(folders: dict[str, Path], name: str) -> None:
    engine = Engine.load(settings(folders[name], "attention_dense"))
    tokenizer = tf.AutoTokenizer.from_pretrained(folders[name])
    pair = tokenizer(QUESTION, ANSWERS[0], return_tensors="pt")
    model = tf.AutoModelForSequenceClassification.from_pretrained(
        folders[name], attn_implementation="eager"
    )
    output = model.double().eval()(**pair, output_attentions=True)
    maps = output.cross_attentions if name == "t5" else output.attentions
    last = maps[-1][0].mean(dim=0)
    pooled = {"bert": last[0], "modernbert": last.mean(dim=0), "t5": last[-1]}[name]
    num_response = len(tokenizer(ANSWERS[0], add_special_tokens=False)["input_ids"]) + 1
    weights = (pooled[-num_response:] / pooled[-num_response:].sum()).detach().numpy()
    (result, _) = await results(
        engine, scorer="attention_dense", credit={"name": "attention", "beta": 1.0}
    )
    assert result.rewards == pytest.approx(result.score * weights, abs=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_a_row_scores_the_same_in_any_company(folders: dict[str, Path], name: str) -> None:
    checkpoint = load_checkpoint(settings(folders[name], "reward_model"))
    layout, generator = TwoWayLayout(checkpoint), np.random.default_rng(0)
    layout.call_tokens = 10**6
    requests = []
    for length in (3, 40, 17, 5):
        ids = generator.integers(tiny.PAD_ID + 1, tiny.VOCAB_SIZE, size=length)
        ids[-1] = tiny.END_ID
        requests.append(RowRequest(Row(ids, 1, length), Needs(pooled=True)))
    alone = [layout.run([request])[0].pooled for request in requests]
    together = [outputs.pooled for outputs in layout.run(requests[::-1])][::-1]
    assert together == pytest.approx(alone, abs=1e-5)
    assert layout.num_computed([request.row for request in requests]) >= 4 * 40


async def test_values_of_tokens_are_refused_by_name(folders: dict[str, Path]) -> None:
    engine = Engine.load(settings(folders["deberta"], "reward_model"))
    with pytest.raises(CreditNotSupported, match="`values`"):
        await results(engine, scorer="reward_model", credit={"name": "values"})


async def test_response_without_the_token_that_the_class_pools_at_is_an_error_of_its_own(
    folders: dict[str, Path],
) -> None:
    engine = Engine.load(settings(folders["t5"], "reward_model"))
    good = {"prompt": QUESTION, "response": ANSWERS[0]}
    items = [good, {**good, "finished": False}, {"prompt": [5, 6], "response": [7, 8]}]
    request = parse(RewardsRequest, {"items": items, "scorer": "reward_model"})
    try:
        first, *others = (await engine.score(request)).items
    finally:
        await engine.close()
    assert first.error is None
    for other in others:
        assert other.error is not None
        assert other.error.code == "unsupported_text"
        assert "EOS (id 1), and the response has none" in other.error.message


BERT, T5_CONFIG = tf.BertConfig(**SIZES), tf.T5Config(**SIZES, **T5)
IS_AN_ENCODER = "cannot be served as reward_model: it is an encoder"
IS_CLASS = "config.json says that it is a"


@pytest.mark.parametrize(
    ("model", "fields", "cause"),
    [
        ("labels", {}, rf"{IS_AN_ENCODER}: the value head has 3 labels .* `head: {{label: ...}}`"),
        ("labels", {"head": {"label": 3}}, r"`label` is 3; .* labels are 0 to 2"),
        ("score", {"head": {"tensor": "classifier"}}, r"no use for `head: {tensor: ...}`$"),
        ("score", {"normalize_reward": True}, r"no use for `normalize_reward`$"),
        ("tokens", {}, rf"{IS_AN_ENCODER}: {IS_CLASS} BertForTokenClassification; .*Sequence"),
        ("words", {}, rf"{IS_AN_ENCODER}: {IS_CLASS} BertForMaskedLM;"),
        ("t5", {}, rf"{IS_AN_ENCODER}-decoder: {IS_CLASS} T5ForConditionalGeneration;"),
    ],
    ids=str,
)
def test_an_encoder_that_is_not_served_is_called_one_with_its_first_cause(
    tmp_path: Path, model: str, fields: dict[str, Any], cause: str
) -> None:
    of_three = tf.BertConfig(**{**SIZES, "num_labels": 3})
    models = {
        "labels": lambda: tf.BertForSequenceClassification(of_three),
        "score": lambda: tf.BertForSequenceClassification(BERT),
        "tokens": lambda: tf.BertForTokenClassification(BERT),
        "words": lambda: tf.BertForMaskedLM(BERT),
        "t5": lambda: tf.T5ForConditionalGeneration(T5_CONFIG),
    }
    models[model]().save_pretrained(tmp_path)
    pairing_tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(CheckpointRefused, match=cause):
        load_checkpoint(settings(tmp_path, "reward_model", **fields))


@pytest.mark.parametrize("kind", ["t5", "bart", "deberta"])
def test_an_encoder_that_is_no_language_model_is_called_one(tmp_path: Path, kind: str) -> None:
    deberta = tf.DebertaV2Config(**SIZES)
    bart = tf.BartConfig(**SIZES, d_model=32, encoder_layers=1, decoder_layers=1)
    models = {
        "t5": lambda: tf.T5ForConditionalGeneration(T5_CONFIG),
        "bart": lambda: tf.BartForConditionalGeneration(bart),
        "deberta": lambda: tf.DebertaV2ForMaskedLM(deberta),
    }
    models[kind]().save_pretrained(tmp_path)
    pairing_tokenizer("bert").save_pretrained(tmp_path)
    name = "encoder" if kind == "deberta" else "encoder-decoder"
    causal = settings(tmp_path, "endogenous").model_copy(update={"task": "causal_lm"})
    with pytest.raises(CheckpointRefused, match=rf"causal_lm: it is an {name} \("):
        load_checkpoint(causal)


@pytest.mark.parametrize(
    ("head", "weights"), [({"label": 1}, [0, 1, 0]), ({"label_weights": [2, 0, -1]}, [2, 0, -1])]
)
def test_a_label_of_an_encoder_is_its_value_and_all_of_them_are_told(
    tmp_path: Path, head: dict[str, Any], weights: list[float]
) -> None:
    names = {0: "helpful", 1: "true", 2: "brief"}
    config = tf.BertConfig(**{**SIZES, "num_labels": 3}, id2label=names)
    model = tf.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    pairing_tokenizer("bert").save_pretrained(tmp_path)
    checkpoint = load_checkpoint(settings(tmp_path, "reward_model", head=head))
    ids = np.arange(4, 20)
    (outputs,) = TwoWayLayout(checkpoint).run([RowRequest(Row(ids, 1, 16), Needs(pooled=True))])
    with torch.inference_mode():
        logits = model.double()(input_ids=torch.from_numpy(ids)[None]).logits
    truth = logits[0].numpy()
    assert outputs.pooled == pytest.approx(truth @ weights, abs=1e-5)
    assert list(outputs.scores) == list(names.values())
    np.testing.assert_allclose(list(outputs.scores.values()), truth, atol=1e-5)


def test_a_scorer_of_values_is_refused_by_name(folders: dict[str, Path]) -> None:
    process = DeploymentSettings(
        name="x",
        checkpoint=str(folders["deberta"]),
        task="reward_model",
        scorers=[{"type": "process", "options": {"step_tag": "<|user|>"}}],
    )
    with pytest.raises(CheckpointRefused, match=r"scorer `process` .* tokens of an encoder"):
        Engine.load(process)


def test_positions_that_begin_behind_the_paddings_are_fewer(folders: dict[str, Path]) -> None:
    checkpoints = {
        name: load_checkpoint(settings(folders[name], "reward_model"))
        for name in ("bert", "roberta")
    }
    assert checkpoints["bert"].max_positions == 128
    assert checkpoints["roberta"].max_positions == 128 - tiny.PAD_ID - 1


def test_a_decoder_whose_head_is_more_than_one_over_tokens_scores_rows(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    config = tf.ModernBertDecoderConfig(**SIZES, local_attention=8)
    model = tf.ModernBertDecoderForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    pairing_tokenizer("other").save_pretrained(tmp_path)
    checkpoint = load_checkpoint(settings(tmp_path, "reward_model"))
    assert checkpoint.is_classifier
    ids = np.arange(3, 20)
    (outputs,) = TwoWayLayout(checkpoint).run([RowRequest(Row(ids, 1, 17), Needs(pooled=True))])
    logits = model.double()(input_ids=torch.from_numpy(ids)[None]).logits
    truth = float(logits[0, 0].detach())
    assert outputs.pooled == pytest.approx(truth, abs=1e-5)
