"""Models that make one vector of a text or an image: sentence-transformers folders, CLIP's two towers, plain encoders.

Owns what follows the model's own forward (pooling, projection, normalization) and what comes before it (tokens,
pixels), as the model's folder says. The models themselves are `pretrained`'s, and which rows there are is `rows`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from superpipe_cluster.embedding.recipe import Recipe, inside, read_json
from superpipe_cluster.errors import BadInput, first_line
from superpipe_cluster.pretrained import (
    AutoClass,
    base_of,
    build_frozen,
    find_file,
    load_config,
    tokenizer_source,
    transformers,
)
from superpipe_cluster.spec import EmbedSection, ModelSection

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

#: `tokenizer: bytes` of random models: 0 to 255, and this to fill up.
_BYTES_PAD = 256


class Encoder:
    """A model, and the way from texts or images to vectors.

    Args:
        section: the job's model section.
        settings: the job's embed section.
        weights: False for a model of the right shape only (a plan).

    Attributes:
        model: what to stream; its forward is all of the model that is used.
        files: what to stream it from, None where the model holds its weights.
        max_length: tokens of a text at most.

    Raises:
        BadInput: the model, its tokenizer or its image processor cannot be loaded, or lacks what is asked for.
    """

    model: Any  # a PreTrainedModel
    files: Any
    max_length: int

    def __init__(self, section: ModelSection, settings: EmbedSection, *, weights: bool = True) -> None:
        recipe = Recipe.read(section.source) or Recipe.read(base_of(section).source) or Recipe()
        inner = section
        if recipe.folder and recipe.source == section.source:
            inner = section.model_copy(update={"source": inside(recipe.source, recipe.folder)})
        self._of_texts = settings.texts is not None
        by_bytes = section.tokenizer in (None, "bytes")
        self._config = load_config(inner, **({"vocab_size": _BYTES_PAD + 1} if by_bytes else {}))
        self._config.use_cache = False
        self._pooling = (settings.pooling,) if settings.pooling else recipe.pooling
        self._normalize = recipe.normalize if settings.normalize is None else settings.normalize
        self._lower_case = recipe.lower_case
        # The text half of a model that reads text for another half to write.
        encoder_decoder = self._of_texts and getattr(self._config, "is_encoder_decoder", False)
        auto: AutoClass = "AutoModelForTextEncoding" if encoder_decoder else "AutoModel"
        self.model, self.files = build_frozen(inner, self._config, auto, weights=weights)
        self._two_towers = self._choose_tower(section)
        self._dense = [_dense(recipe.source, path, self.model.dtype) for path in recipe.dense]
        for number, layers in enumerate(self._dense):
            self.model.add_module(f"embedding_dense_{number}", layers)  # streamed with it, and in its budget
        if self._of_texts:
            self._tokenizer = _load_tokenizer(inner)
            self.max_length = self._limit(settings.max_length, recipe.max_length)
            self._prompt = _prompt(recipe, settings.prompt)
        else:
            self._processor = _load_processor(inner, self._config)

    # ---- what goes in ----------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """The model's inputs of each text, as long as it is."""
        given = [self._prompt + text for text in texts]
        if self._lower_case:
            given = [text.lower() for text in given]
        if self._tokenizer is None:
            cut = [list(text.encode("utf-8"))[: self.max_length] or [_BYTES_PAD] for text in given]
            return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in cut]
        encoded = self._tokenizer(given, truncation=True, max_length=self.max_length)
        return [{name: encoded[name][row] for name in encoded} for row in range(len(given))]

    def batch(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        """What `tokenize` made of some texts, or images, as one batch."""
        return self.pad(rows) if self._of_texts else self.pixels(rows)

    def pad(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """What `tokenize` made of some texts as one batch, `int64[rows, tokens]` each."""
        if self._tokenizer is not None:
            return dict(self._tokenizer.pad(list(rows), padding=True, return_tensors="pt"))
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        filled = {
            name: [row[name] + [fill] * (width - len(row[name])) for row in rows]
            for name, fill in (("input_ids", _BYTES_PAD), ("attention_mask", 0))
        }
        return {name: torch.tensor(values) for name, values in filled.items()}

    def pixels(self, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        """Images as one batch."""
        return dict(self._processor([image.convert("RGB") for image in images], return_tensors="pt"))

    def widest(self, batch_size: int, longest: int) -> dict[str, torch.Tensor]:
        """A batch of the largest shape there can be, for a plan; `longest` tokens of a text, or bytes of it."""
        import torch

        if self._of_texts:
            width = min(self.max_length, longest + 2)
            ids = torch.zeros(batch_size, width, dtype=torch.long)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        size = getattr(getattr(self._config, "vision_config", None) or self._config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": torch.zeros(batch_size, 3, height, width)}

    # ---- what comes out --------------------------------------------------------------------------------

    def encode(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """One vector for each row of a batch that is on the device: `float[rows, dimensions]`."""
        import torch

        given = {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in batch.items()
        }
        with torch.no_grad():
            made = self.model(**given)
        return self.finish(made, given.get("attention_mask"))

    def finish(self, made: Any, mask: torch.Tensor | None) -> torch.Tensor:
        """Vectors of what the model made: its output, or a tuple with the last hidden states."""
        import torch

        with torch.no_grad():
            if self._two_towers:
                vectors = made if isinstance(made, torch.Tensor) else made.pooler_output
            else:
                vectors = self._pool(made, mask)
            for dense in self._dense:
                vectors = dense(vectors)
            if self._normalize:
                vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
        return vectors.float()

    @property
    def needs_tokens_alone(self) -> bool:
        """Whether nothing but the tokens of a text goes into the model."""
        if not self._of_texts or self._two_towers:
            return False
        (row,) = self.tokenize(["a"])
        return not any(any(row[name]) for name in row.keys() - {"input_ids", "attention_mask"})

    def _pool(self, made: Any, mask: torch.Tensor | None) -> torch.Tensor:
        import torch

        tokens: torch.Tensor = made[0]
        if tokens.ndim == 4:  # a convolutional network: [rows, channels, height, width]
            if self._pooling is None:
                return made.pooler_output.flatten(1)
            tokens = tokens.flatten(2).transpose(1, 2)
        poolings = self._pooling or (("mean",) if self._of_texts else ("cls",))
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        return torch.cat([_pooled(tokens, mask, pooling) for pooling in poolings], dim=-1)

    # ---- how it is put together ------------------------------------------------------------------------

    def _choose_tower(self, section: ModelSection) -> bool:
        """For a model of texts and images, make its forward the half of it that is used; whether it is one."""
        method = getattr(self.model, "get_text_features" if self._of_texts else "get_image_features", None)
        if method is None:
            main_input = getattr(self.model, "main_input_name", "input_ids")
            if (main_input == "input_ids") is not self._of_texts:
                wrong, right = ("texts", "images") if self._of_texts else ("images", "texts")
                raise BadInput(
                    f"embed.{wrong}: {section.source or self._config.model_type} has no use for {wrong}",
                    hint=f"give it {right}, or name another model",
                )
            return False
        self.model.forward = (
            method  # called as the model itself, so that the runtime sees where a step begins
        )
        return True

    def _limit(self, asked: int | None, said: int | None) -> int:
        text_config = getattr(self._config, "text_config", None) or self._config
        positions = getattr(text_config, "max_position_embeddings", None)
        # RoBERTa's positions begin behind the number of its padding token.
        if positions is not None and text_config.model_type in (
            "roberta",
            "xlm-roberta",
            "camembert",
            "mpnet",
        ):
            positions -= (text_config.pad_token_id or 0) + 1
        if asked is not None and positions is not None and asked > positions:
            raise BadInput(
                f"embed.max_length: {asked} tokens are more than the {positions} positions of the model",
                hint=f"use at most {positions}",
            )
        tokenizers = getattr(self._tokenizer, "model_max_length", None)
        limits = [limit for limit in (positions, tokenizers) if limit is not None and limit < 1 << 30]
        return asked or said or min(limits, default=512)


def _pooled(tokens: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector of those of the tokens, in the words and with the bits of sentence-transformers."""
    import torch

    if pooling == "mean":
        kept = mask.unsqueeze(-1).to(tokens.dtype)
        exact = tokens.dtype if tokens.dtype == torch.float64 else torch.float32
        total = (tokens * kept).sum(dim=1, dtype=exact)
        return (total / kept.sum(dim=1, dtype=exact).clamp(min=1e-9)).to(tokens.dtype)
    if pooling == "max":
        return tokens.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).max(dim=1).values
    place = mask.int().argmax(dim=1)  # of the first one, behind what fills up on the left
    if pooling == "lasttoken":
        place = mask.shape[1] - 1 - mask.int().flip(1).argmax(dim=1)
    return tokens.gather(1, place[:, None, None].expand(-1, 1, tokens.shape[-1])).squeeze(1)


def _prompt(recipe: Recipe, asked: str | None) -> str:
    name = asked or recipe.default_prompt
    if name is None:
        return ""
    if name not in recipe.prompts:
        known = ", ".join(recipe.prompts) or "none"
        raise BadInput(
            f"embed.prompt: the model has no prompt {name!r}",
            hint=f"its prompts are: {known}; or leave it out",
        )
    return recipe.prompts[name]


def _dense(source: str, path: str, dtype: torch.dtype) -> nn.Module:
    """A layer of sentence-transformers behind the pooling, with its weights."""
    import safetensors.torch
    import torch

    said = read_json(source, f"{path}/config.json") or {}
    activation = said.get("activation_function", "torch.nn.Tanh").rpartition(".")[2]
    linear = torch.nn.Linear(said["in_features"], said["out_features"], bias=said.get("bias", True))
    found = find_file(source, f"{path}/model.safetensors")
    if found is not None:
        stored = safetensors.torch.load_file(found)
    else:
        stored = torch.load(str(find_file(source, f"{path}/pytorch_model.bin")), weights_only=True)
    if said.get("use_residual") or not hasattr(torch.nn, activation):
        raise BadInput(
            f"model.source: {path} of {source} is a layer that is not supported",
            hint="layers are linear, with an activation of torch.nn",
        )
    linear.load_state_dict({name.removeprefix("linear."): value for name, value in stored.items()})
    return torch.nn.Sequential(linear, getattr(torch.nn, activation)()).to(dtype).eval().requires_grad_(False)


def _load_tokenizer(section: ModelSection) -> Any:
    """The tokenizer that is named, else the source's own; None for bytes."""
    named = section.tokenizer or tokenizer_source(section) or section.source
    if named is None or named == "bytes":
        return None
    try:
        return transformers("embed").AutoTokenizer.from_pretrained(named)
    except Exception as error:
        raise BadInput(
            f"model.tokenizer: cannot load {named}: {first_line(error)}",
            hint="name a folder or a hub model that has a tokenizer, or write `tokenizer: bytes`",
        ) from error


def _load_processor(section: ModelSection, config: Any) -> Any:
    """The image processor of the model's folder, else that of its kind with its image size."""
    library = transformers("embed")
    try:
        if section.source is not None:
            # Pillow's resizing, whatever else is installed: the same vectors on every machine.
            return library.AutoImageProcessor.from_pretrained(base_of(section).source, backend="pil")
        known = library.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING[type(config)]
        size = getattr(getattr(config, "vision_config", None) or config, "image_size", 224)
        square = {"height": size, "width": size}
        return known["pil"](size=square, crop_size=square)
    except Exception as error:
        raise BadInput(
            f"model.source: {section.source or config.model_type} has no image processor: {first_line(error)}",
            hint='its folder needs a preprocessor_config.json, and Pillow: pip install "superpipe_cluster[embed]"',
        ) from error
