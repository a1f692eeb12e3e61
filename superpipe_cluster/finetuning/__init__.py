"""Fine-tuning: examples as a job file names them, as sequences with labels; curves.

Owns what turns rows of local files into batches with a loss mask. Hugging Face's libraries do the work; the training
itself is the worker program's.
"""

from superpipe_cluster.finetuning.curves import Curves
from superpipe_cluster.finetuning.examples import read_examples
from superpipe_cluster.finetuning.sequences import Sequences

__all__ = [
    "Curves",
    "Sequences",
    "read_examples",
]
