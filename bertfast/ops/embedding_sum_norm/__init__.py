from bertfast.ops.embedding_sum_norm.op import embedding_sum_norm, tied_embedding_sum_norm

__all__ = ["embedding_sum_norm", "tied_embedding_sum_norm"]
