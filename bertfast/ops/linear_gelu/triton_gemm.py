def linear_gelu_fused(*a):
    raise NotImplementedError
