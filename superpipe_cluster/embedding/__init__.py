"""Vectors of texts and images: the models that make them, and the rows that they are made of."""

from superpipe_cluster.embedding.alone import Alone
from superpipe_cluster.embedding.encoder import Encoder
from superpipe_cluster.embedding.recipe import Recipe
from superpipe_cluster.embedding.rows import Rows, open_rows

__all__ = ["Alone", "Encoder", "Recipe", "Rows", "open_rows"]
