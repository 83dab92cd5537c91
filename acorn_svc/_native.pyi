"""CPU kernels of Acorn, built from cuda_ext/. Use them through acorn_svc.field.ops."""

from torch import Tensor

def identity(input: Tensor, output: Tensor) -> None: ...
