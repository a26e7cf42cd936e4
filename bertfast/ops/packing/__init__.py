from bertfast.ops.packing.op import Packing, Survey, pack, repad, survey, unpad

__all__ = ["Packing", "Survey", "pack", "repad", "survey", "unpad"]
