"""Texts to embeddings in bulk: a checkpoint with its pooling as one object, and files through it to shards on disk.

encoder = bertfast.Encoder("sentence-transformers/all-MiniLM-L6-v2")  # a name on the hub, or a folder
embeddings = encoder.encode(["One text.", "Another."])  # [2, E] float32
"""

from bertfast.encoding.encoder import Encoder
from bertfast.encoding.recipe import Recipe, RecipeError

__all__ = ["Encoder", "Recipe", "RecipeError"]
