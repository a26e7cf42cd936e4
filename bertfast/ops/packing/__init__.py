from bertfast.ops.packing.op import Packing, pack, repad, unpad

__all__ = ["Packing", "pack", "repad", "unpad"]
