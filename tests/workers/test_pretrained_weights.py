"""Pretrained weights stream from their files with the bits that transformers loads; what it must convert, it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from streaming.twins import assert_equal
from superpipe_cluster.errors import BadInput
from superpipe_cluster.language_models import ByteTokenizer, build_model, build_to_stream, load_config
from superpipe_cluster.spec import ModelSection
from superpipe_cluster.streaming import stream

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 64, "vocab_size": 300}
LLAMA = transformers.LlamaConfig(
    intermediate_size=48,
    num_hidden_layers=4,
    tie_word_embeddings=True,
    bos_token_id=256,
    eos_token_id=256,
    **SIZES,
)
GPT2 = transformers.GPT2Config(n_embd=32, n_layer=4, n_head=2, n_positions=64, vocab_size=300)
EXPERTS = transformers.MixtralConfig(
    intermediate_size=48, num_hidden_layers=3, num_local_experts=4, num_key_value_heads=2, **SIZES
)


def written(config: Any, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> ModelSection:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    model.generation_config.max_length = 77
    model.save_pretrained(folder, **options)
    return ModelSection(source=str(folder))


@pytest.mark.parametrize("host", ["pinned", "shared", "disk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_model_from_its_files_is_the_model_that_transformers_loads(
    config: Any, dtype: Any, host: Any, tmp_path: Path
) -> None:
    section = written(config, tmp_path, max_shard_size="40KB").model_copy(update={"dtype": dtype})
    found = load_config(section, ByteTokenizer())
    expected = build_model(section, found).eval()
    model, files = build_to_stream(section, found)
    assert files == tmp_path
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert all(parameter.is_meta for parameter in model.parameters())
    model.eval().requires_grad_(False)
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad(), stream(model, k=2, weights=files, host=host, poison=True) as streamer:
        assert_equal(expected(tokens).logits, model(tokens).logits)
        assert streamer.stats().loads >= streamer.stats().units
        assert streamer.stats().peak_units <= 2
    assert_equal(expected.state_dict(), model.state_dict())
    assert model.generation_config.max_length == 77
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_what_transformers_has_to_convert_it_loads(tmp_path: Path) -> None:
    section = written(EXPERTS, tmp_path)
    found = load_config(section, ByteTokenizer())
    expected = build_model(section, found).eval()
    model, files = build_to_stream(section, found)
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad(), stream(model.eval(), k=3, weights=files) as streamer:
        assert_equal(expected(tokens).logits, model(tokens).logits)
        assert streamer.stats().loads >= streamer.stats().units


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    section = written(LLAMA, tmp_path / "one")
    written(GPT2, tmp_path / "other")
    config = load_config(section, ByteTokenizer())
    with pytest.raises(
        BadInput, match=r"the checkpoint is of another model: .* missing model\.embed_tokens\.weight"
    ) as caught:
        build_to_stream(section, config, tmp_path / "other" / "model.safetensors")
    assert "another name" in str(caught.value.hint)
    model, files = build_to_stream(ModelSection(config={"model_type": "gpt2", "n_layer": 1}), GPT2)
    assert files is None
    assert not any(parameter.is_meta for parameter in model.parameters())
