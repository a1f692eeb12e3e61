"""The embed worker: the vectors of the plain libraries, bit for bit, and the same files after `kill -9`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
import transformers
from PIL import Image

from digits import write_digits
from superpipe_cluster import spec
from superpipe_cluster.embedding import Alone, Encoder, Recipe, open_rows
from superpipe_cluster.embedding.each import Each, NotAlike
from superpipe_cluster.errors import BadInput, JobFileError
from superpipe_cluster.planning.model_plan import probe_of_job, recorded
from superpipe_cluster.planning.profile import plan_of
from superpipe_cluster.spec import EmbedSection, ModelSection
from superpipe_cluster.streaming import stream
from worker_runs import Run

BERT = {
    "model_type": "bert", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
    "num_attention_heads": 4, "max_position_embeddings": 256, "vocab_size": 257,
}  # fmt: skip
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "budget", "of", "a", "unit", "is", "what", "it", "may",
    "hold", "ask", "query", ":",
]  # fmt: skip


def job(model: dict[str, Any], **embed: Any) -> dict[str, Any]:
    return {"kind": "embed", "name": "e", "model": model, "embed": embed}


# ---- the same vectors ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    half = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={**half, "vocab_size": len(WORDS), "max_position_embeddings": 32, "eos_token_id": 3},
        vision_config={**half, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return folder


def test_clip_makes_the_vectors_of_transformers(clip: Path, tmp_path: Path) -> None:
    pictures = write_digits(tmp_path / "digits" / "some", 7, (40, 36))
    (tmp_path / "digits" / "notes.txt").write_text("not an image")
    budget = 600_000
    run = Run(
        tmp_path / "job", job({"source": str(clip)}, images=str(tmp_path / "digits"), batch_size=3), budget
    )
    run.here()
    assert run.progress["loads"] > run.progress["units"]
    assert run.progress["peak_bytes"] <= budget < run.progress["model_bytes"]

    model = transformers.CLIPModel.from_pretrained(clip)
    for parameter in model.parameters():
        # Where the file happens to put it in memory, its products with a single vector may end in another bit.
        parameter.data = parameter.data.clone()
    processor = transformers.AutoImageProcessor.from_pretrained(clip, backend="pil")
    expected = []
    for at in range(0, 7, 3):
        images = [Image.open(path).convert("RGB") for path in pictures[at : at + 3]]
        with torch.no_grad():
            made = model.get_image_features(**processor(images=images, return_tensors="pt"))
        expected += (made if isinstance(made, torch.Tensor) else made.pooler_output).tolist()
    table = parquet.read_table(run.output / "embeddings.parquet")
    assert table.column("id").to_pylist() == [path.name for path in pictures]
    assert table.column("embedding").to_pylist() == expected
    assert not (run.output / "embeddings.npy").exists()


def sentence_model(folder: Path, pooling: dict[str, Any]) -> transformers.BertModel:
    """A sentence-transformers folder: a model, a pooling, a layer, a prompt."""
    config = transformers.BertConfig(**{**BERT, "num_hidden_layers": 2, "vocab_size": len(WORDS)})
    torch.manual_seed(1)
    model = transformers.BertModel(config).eval()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    for path, said in {
        "1_Pooling": pooling,
        "2_Dense": {
            "in_features": 64,
            "out_features": 8,
            "activation_function": "torch.nn.modules.activation.Tanh",
        },
    }.items():
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(said))
    linear = torch.nn.Linear(64, 8)
    torch.save(
        {f"linear.{name}": value for name, value in linear.state_dict().items()},
        folder / "2_Dense/pytorch_model.bin",
    )
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query : "}}))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 6, "do_lower_case": False})
    )
    return model


@pytest.mark.parametrize(
    ("said", "pool"),
    [
        ({"pooling_mode_cls_token": True}, lambda one: one[0]),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, lambda one: one.max(0).values),
        ({"pooling_mode": "lasttoken"}, lambda one: one[-1]),
    ],
    ids=["cls", "max", "lasttoken"],
)
def test_a_sentence_transformers_folder_says_how(
    said: dict[str, Any], pool: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    model = sentence_model(tmp_path, said)
    encoder = Encoder(ModelSection(source=str(tmp_path)), EmbedSection(texts=("x",), prompt="query"))
    texts = ["the budget", "a unit of what it may hold is a unit", "Ask the query"]
    with stream(encoder.model, k=2, weights=encoder.files, poison=True) as streamer:
        vectors = encoder.encode(encoder.pad(encoder.tokenize(texts)))
        assert streamer.stats().peak_units <= 2

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    given = tokenizer(
        [f"query : {text}" for text in texts],
        padding=True,
        truncation=True,
        max_length=6,
        return_tensors="pt",
    )
    weights = torch.load(tmp_path / "2_Dense" / "pytorch_model.bin")
    with torch.no_grad():
        tokens = model(**given)[0]
        pooled = torch.stack(
            [pool(one[: int(mask.sum())]) for one, mask in zip(tokens, given["attention_mask"], strict=True)]
        )
        dense = torch.tanh(
            torch.nn.functional.linear(pooled, weights["linear.weight"], weights["linear.bias"])
        )
        expected = torch.nn.functional.normalize(dense, p=2, dim=1)
    assert torch.equal(vectors, expected)


def test_a_folder_on_the_hub_says_how_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence_model(tmp_path, {"pooling_mode": "cls"})

    def cached_file(source: str, name: str, **_: Any) -> str | None:
        assert source == "org/model"
        return str(tmp_path / name) if (tmp_path / name).is_file() else None

    monkeypatch.setattr("transformers.utils.hub.cached_file", cached_file)
    recipe = Recipe.read("org/model")
    assert recipe is not None
    assert (recipe.pooling, recipe.normalize, recipe.max_length) == (("cls",), True, 6)


# ---- the same files ------------------------------------------------------------------------------------


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    table = tmp_path / "docs.jsonl"
    rows = [{"name": f"d{n}", "body": "a text " * (n * 7 % 9 + 1)} for n in range(200)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = job(
        {"config": BERT}, texts=[str(table)], field="body", id_field="name", batch_size=2, checkpoint_every=10
    )
    whole, cut = Run(tmp_path / "whole", asked, 64 << 20), Run(tmp_path / "cut", asked, 700_000)
    whole.here()
    cut.kill_at(cut.start(), 45)
    cut.here()
    resumed = re.search(r"resumed behind batch (\d+)0, attempt 2", cut.log())
    assert resumed is not None
    assert int(resumed[1]) >= 4
    assert cut.progress["loads"] > cut.progress["units"]
    assert [path.name for path in cut.output.iterdir()] == ["embeddings.parquet"]
    expected = (whole.output / "embeddings.parquet").read_bytes()
    assert (cut.output / "embeddings.parquet").read_bytes() == expected
    made = parquet.read_table(cut.output / "embeddings.parquet")
    assert made.column("id").to_pylist() == [row["name"] for row in rows]


# ---- as many in a pass as there is room for -------------------------------------------------------------


def texts_of(count: int) -> list[str]:
    return ["a text " * (number * 7 % 17 + 1) for number in range(count)]


def vectors(run: Run) -> list[list[float]]:
    table = parquet.read_table(run.output / "embeddings.parquet")
    assert table.column("id").to_pylist() == list(range(table.num_rows))
    return table.column("embedding").to_pylist()


def test_texts_have_the_vectors_that_they_have_alone_whatever_the_budgets(tmp_path: Path) -> None:
    texts = texts_of(150)
    table = tmp_path / "docs.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    asked = job({"config": BERT}, texts=str(table), batch_size="auto", checkpoint_every=1)
    parsed = spec.parse(asked)
    floor_bytes = plan_of(recorded(probe_of_job(parsed)), cuda=False).floor_bytes
    least, more = floor_bytes + 50_000, 900_000
    run = Run(tmp_path / "job", asked, least)
    run.here(stop_at=2)
    few = run.progress["loads"]
    run.attempt = replace(run.attempt, budget_bytes=more)
    run.here()
    assert "resumed behind batch 2, attempt 2" in run.log()
    assert run.progress["steps"] == 3
    assert run.progress["units"] < run.progress["loads"] < few
    assert floor_bytes < run.progress["peak_bytes"] <= more < run.progress["model_bytes"]

    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**BERT)).eval()
    expected = []
    for text in texts:
        with torch.no_grad():
            hidden = model(torch.tensor([list(text.encode())])).last_hidden_state
        expected.append((hidden.sum(1) / hidden.shape[1])[0].tolist())
    assert vectors(run) == expected


def test_passes_keep_to_what_is_guaranteed(tmp_path: Path) -> None:
    table = tmp_path / "docs.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts_of(64)))
    asked = job({"config": BERT}, texts=str(table), batch_size="auto")
    asked["resources"] = {"gpu_memory": "600KiB..900KiB"}
    run = Run(tmp_path / "job", asked, 900 << 10)
    run.here()
    assert run.progress["loads"] > 2 * run.progress["units"]
    assert run.progress["floor_bytes"] <= 600 << 10 < run.progress["peak_bytes"] <= 900 << 10


def test_images_have_the_vectors_that_they_have_alone(clip: Path, tmp_path: Path) -> None:
    pictures = write_digits(tmp_path / "digits", 20, (40, 36))
    budget = 600_000
    asked = job({"source": str(clip)}, images=str(tmp_path / "digits"), batch_size="auto")
    run = Run(tmp_path / "job", asked, budget)
    run.here()
    assert run.progress["units"] < run.progress["loads"] < 10 * run.progress["units"], "not a pass for each"
    assert run.progress["peak_bytes"] <= budget < run.progress["model_bytes"]

    model = transformers.CLIPModel.from_pretrained(clip)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    processor = transformers.AutoImageProcessor.from_pretrained(clip, backend="pil")
    expected = []
    for path in pictures:
        with torch.no_grad():
            given = processor(images=[Image.open(path).convert("RGB")], return_tensors="pt")
            made = model.get_image_features(**given)
        expected += (made if isinstance(made, torch.Tensor) else made.pooler_output).tolist()
    assert parquet.read_table(run.output / "embeddings.parquet").column("embedding").to_pylist() == expected


class Odd(transformers.BertModel):
    """Does something with the mask of a text, also where it hides nothing."""

    def forward(self, *args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        made = super().forward(*args, attention_mask=attention_mask, **kwargs)
        if attention_mask is not None:
            made.last_hidden_state = made.last_hidden_state * attention_mask.sum()
        return made


class Choosy(transformers.BertModel):
    """Reads a value of its input."""

    _supports_attention_backend = False

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        made = super().forward(input_ids, **kwargs)
        if input_ids[0, 0] > 100:
            made.last_hidden_state = -made.last_hidden_state
        return made


@pytest.mark.parametrize(
    ("kind", "config", "most_passes"),
    [
        (None, {}, 20),
        (None, {"model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, 45),
        (Odd, {}, 45),
        (Choosy, {}, 64),
    ],
    ids=["side by side", "by length", "by length after all", "one after another"],
)
def test_whatever_a_model_does_the_vectors_are_those_of_each_text_alone(
    kind: Any, config: dict[str, Any], most_passes: int
) -> None:
    section = ModelSection(config={**BERT, **config})
    encoder = Encoder(section, EmbedSection(texts=("x",)))
    if kind is not None:
        encoder.model.__class__ = kind
    rows = encoder.tokenize([*texts_of(60), "x text", "y text", "z text", "a text"])
    rows.sort(key=lambda row: -len(row["input_ids"]))
    expected = torch.cat([encoder.encode(encoder.pad([row])) for row in rows])
    passes = [1]
    with stream(encoder.model, k=3, weights=encoder.files, poison=True) as streamer:
        alone = Alone(encoder, streamer.device)
        made = alone.vectors(rows, streamer, 4 << 20, lambda: bool(passes.append(1)))
        stats = streamer.stats()
        last = alone.vectors(rows[-1:], streamer, 4 << 20, lambda: False)
    assert made is not None
    assert torch.equal(made, expected)
    assert last is not None
    assert torch.equal(last, expected[-1:]), "nobody is left to go with it"
    assert stats.peak_units <= 3 < stats.units
    assert 1 < len(passes) <= most_passes


def test_tensors_that_go_together_do_so_operator_by_operator_or_not_at_all() -> None:
    first, second = torch.tensor([[1.0, 5.0]]), torch.tensor([[4.0, 3.0]])
    both = Each.of([first, second])
    largest = (both * 2).max(dim=1)
    assert [part.tolist() for part in largest.values.parts] == [[10.0], [8.0]]
    assert [part.tolist() for part in torch.cat([both, torch.zeros(1, 2)]).sum(0).parts] == [[1, 5], [4, 3]]
    assert both.shape == first.shape
    both[:, 0] = 7.0
    assert (first[0, 0], second[0, 0]) == (7.0, 7.0)
    for mixing in (
        lambda: torch.zeros(1, 2).add_(both),
        lambda: torch.zeros(1, 2).__setitem__((0, 0), both[0, 1]),
        lambda: bool((both > 4).all()),
        lambda: Each.of([first, torch.zeros(1, 3)]),
    ):
        with pytest.raises(NotAlike):
            mixing()


def test_a_job_that_is_to_stop_does_so_between_two_passes() -> None:
    encoder = Encoder(ModelSection(config=BERT), EmbedSection(texts=("x",)))
    rows = encoder.tokenize(texts_of(5))
    with stream(encoder.model, k=3, weights=encoder.files) as streamer:
        assert Alone(encoder, streamer.device).vectors(rows, streamer, 0, lambda: True) is None


# ---- what cannot be embedded ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "embed", "said"),
    [
        (
            "a.jsonl",
            '{"text": "x"}\n',
            {"field": "body"},
            r"embed\.field: there is no column 'body' in .*a\.jsonl",
        ),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', {}, r"embed\.texts: cannot read .*a\.jsonl as json"),
        ("a.csv", "text,n\nx,1\n", {"field": "n"}, r"embed\.field: 'n' of .*a\.csv holds int64, not text"),
        ("a.jsonl", '{"text": "x"}\n{"text": null}\n', {}, r"nothing in 'text' of row 1 of .*a\.jsonl"),
        ("a.txt", "", {}, r"no rows in .*a\.txt|cannot read .*a\.txt"),
        ("a.md", b"\xff\xfe", {}, r"embed\.texts: cannot read .*a\.md"),
        ("a.png", "no image", {"images": True}, r"embed\.images: cannot read .*a\.png"),
    ],
    ids=["column", "json", "type", "null", "empty", "encoding", "image"],
)
def test_bad_rows_are_named(
    name: str, content: Any, embed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    kind = "images" if embed.pop("images", False) else "texts"
    with pytest.raises(BadInput, match=said) as caught:
        open_rows(EmbedSection(**{kind: (str(path),), **embed}))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("model", "embed", "said"),
    [
        (
            {"config": BERT},
            {"texts": ("x",), "max_length": 300},
            r"max_length: 300 tokens are more than the 256",
        ),
        (
            {"config": BERT},
            {"texts": ("x",), "prompt": "query"},
            r"embed\.prompt: the model has no prompt 'query'",
        ),
        ({"config": BERT}, {"images": ("x",)}, r"embed\.images: bert has no use for images"),
        (
            {"config": BERT, "tokenizer": "/nowhere"},
            {"texts": ("x",)},
            r"model\.tokenizer: cannot load /nowhere",
        ),
        ({"config": {"model_type": "brt"}}, {"texts": ("x",)}, r"model\.config: cannot load brt"),
    ],
    ids=["positions", "prompt", "modality", "tokenizer", "model_type"],
)
def test_bad_models_are_named(model: dict[str, Any], embed: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        Encoder(ModelSection(**model), EmbedSection(**embed), weights=False)
    assert caught.value.hint


def test_an_output_that_cannot_be_written_is_said_before_embedding(tmp_path: Path) -> None:
    run = Run(tmp_path / "job", job({"config": BERT}, texts="python-stdlib:json/*.py"), 64 << 20)
    (run.output / "embeddings.npy").mkdir(parents=True)
    with pytest.raises(BadInput, match="output: cannot write"):
        run.here()
    assert "step" not in run.progress


@pytest.mark.parametrize("given", [{}, {"texts": "a.txt", "images": "b"}])
def test_a_job_embeds_texts_or_images(given: dict[str, Any]) -> None:
    with pytest.raises(JobFileError) as caught:
        spec.parse(job({"config": BERT}, **given))
    assert "texts" in caught.value.problems[0]
