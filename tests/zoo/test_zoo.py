"""A sample of the zoo with every run of the tests, the whole of it with the slow ones. See `run.py` for the table."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.run import LIBRARIES
from zoo.trial import try_out

#: One of each kind: what is called in its own way, reads weights in its own way, or has its own control flow.
_SAMPLE = {
    "torch": [
        "LSTM, projected", "MultiheadAttention, other widths", "TransformerEncoder", "Conv3d", "Linear, complex",
        "EmbeddingBag", "spectral_norm",
    ],
    "transformers": ["albert", "bart", "gpt2", "mixtral", "mamba", "resnet", "clip", "wav2vec2", "xlnet"],
    "timm": ["convit", "res2net", "xcit"],
    "diffusers": ["DiTTransformer2DModel", "AutoencoderTiny"],
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, about each other


@pytest.mark.parametrize(("library", "name"), [(lib, name) for lib in LIBRARIES for name in _SAMPLE[lib]])
def test_streamed_as_plain(library: str, name: str) -> None:
    pytest.importorskip(library)
    models = importlib.import_module(f"zoo.{library}_models")
    row = try_out(models.specimen(name), models.version())
    assert row.status == "exact", row.reason
    assert row.k_smallest < row.units < row.loads
    assert row.smallest_bytes < row.half_bytes < row.whole_bytes


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_the_whole_zoo() -> None:
    for library in LIBRARIES:
        pytest.importorskip(library)
    run = Path(__file__).with_name("run.py")
    done = subprocess.run([sys.executable, str(run)], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
