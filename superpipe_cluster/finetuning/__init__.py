"""Fine-tuning: examples as a job file names them, as sequences with labels; adapters; curves.

Owns what turns rows of local files into batches with a loss mask, and what is PEFT's about a streamed model. Hugging
Face's libraries do the work; the training itself is the worker program's.
"""

from superpipe_cluster.finetuning.adapters import add_adapter, load_adapter, save_adapter
from superpipe_cluster.finetuning.curves import Curves
from superpipe_cluster.finetuning.examples import read_examples
from superpipe_cluster.finetuning.sequences import Sequences

__all__ = [
    "Curves",
    "Sequences",
    "add_adapter",
    "load_adapter",
    "read_examples",
    "save_adapter",
]
