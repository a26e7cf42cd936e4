"""Optimizers: AdamW, and LAMB for large batches; which parameters decay; gradient clipping.

On a GPU whose kernels are verified both clip, update, and write the copies that products read in one pass (`one_pass`).
Elsewhere AdamW is torch's fused one, LAMB calls torch's functions for lists of tensors, and clipping and copying are passes too.
Both take plain parameters and FSDP's sharded ones (DTensor).
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeGuard, overload

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bertfast import _torch
from bertfast.nn.joined import Held
from bertfast.train import one_pass
from bertfast.train.config import TrainConfig
from bertfast.train.one_pass import OnePass, local


def _norms(tensors: list[Tensor], shards: list[Tensor]) -> Tensor:
    """The L2 norm of each tensor, [n] float32; `shards` are the parameters, which say over which ranks to sum."""
    squares = torch.stack(_torch.foreach("norm")([local(t) for t in tensors])).square_()
    if isinstance(shards[0], DTensor):
        torch.distributed.all_reduce(squares, group=shards[0].device_mesh.get_group())
    return squares.sqrt_()


def _erase(tensors: list[Tensor], where: Tensor) -> None:
    """Set all to zero, in place, where the scalar `where` is not 0."""
    # As integers: NaN times zero is NaN, its bits times zero are 0.0.
    for size, kind in ((2, torch.int16), (4, torch.int32), (8, torch.int64)):
        words = [t.view(kind) for t in tensors if t.element_size() == size]
        if words:
            _torch.foreach("mul_")(words, (where == 0).to(kind))


def _unless(withheld: Tensor, value: float | Tensor, otherwise: float) -> Tensor:
    """`value` where the scalar `withheld` is 0; a scalar on its device, float64 unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=torch.float64, device=withheld.device)
    return torch.where(withheld == 0, value, otherwise)


class Lamb(OnePass):
    """LAMB (You et al. 2019, arXiv:1904.00962, algorithm 2).

    Adam's bias-corrected direction plus weight decay, scaled for each parameter by ||weight|| / ||direction||; 1 where either
    is zero, and in groups without weight decay (biases and layer norms), as in the authors' code.

    Steps are counted on the parameters' device and nothing is read from there, so that `step` may be captured. As with torch's
    fused optimizers, `lr` may be a scalar tensor, and where an attribute `found_inf` is set, a float32 scalar on the device that is
    0 or 1, a step changes neither weights nor state while it is 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        if self.is_one_pass():
            self._step()
            return loss
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters, getattr(self, "found_inf", None))
        return loss

    def is_one_pass(self) -> bool:
        return all(map(one_pass.runs, ("lamb_moments", "lamb_step"), [self.device] * 2))

    def _step(self) -> None:
        parameters, columns, sizes, settings = self.gather()
        if not parameters:
            return
        weights, gradients, means, squares, steps = columns
        withheld: Tensor | None = getattr(self, "found_inf", None)
        arguments = (sizes, settings, self.norm, self.max_norm, withheld)
        sums = one_pass.op("lamb_moments", self.device)(weights, gradients, means, squares, steps, *arguments)
        if isinstance(parameters[0], DTensor) and not one_pass.is_placing():
            torch.distributed.all_reduce(sums, group=parameters[0].device_mesh.get_group())
        step = one_pass.op("lamb_step", self.device)
        step(weights, means, squares, steps, self.targets(parameters), sizes, settings, self.rates(), sums, withheld)

    def _update(self, group: dict[str, Any], parameters: list[Tensor], withheld: Tensor | None) -> None:
        self.make_state(parameters)
        steps = [self.state[p]["step"] for p in parameters]
        weights = [local(p) for p in parameters]
        grads = [local(p.grad) for p in parameters if p.grad is not None]
        first = [local(self.state[p]["exp_avg"]) for p in parameters]
        second = [local(self.state[p]["exp_avg_sq"]) for p in parameters]
        beta1, beta2 = group["betas"]
        done = steps[0].double() + 1
        # Bias corrections: of the mean's, and of both together.
        mean = 1 - beta1**done
        ratio = mean / (1 - beta2**done).sqrt()
        keep1, keep2, rate = beta1, beta2, group["lr"]
        if withheld is None:
            _torch.foreach("add_")(steps, 1)
        else:
            _erase(grads, withheld)
            _torch.foreach("add_")(steps, 1 - withheld, alpha=1.0)  # without alpha torch reads the number
            keep1, keep2 = (_unless(withheld, beta, 1.0).to(grads[0].dtype) for beta in (beta1, beta2))
            rate = _unless(withheld, rate, 0.0)
        _torch.foreach("mul_")(first, keep1)
        _torch.foreach("add_")(first, grads, alpha=1 - beta1)
        _torch.foreach("mul_")(second, keep2)
        _torch.foreach("addcmul_")(second, grads, grads, value=1 - beta2)
        below = _torch.foreach("sqrt")(second)
        _torch.foreach("mul_")(below, ratio.to(below[0].dtype))
        _torch.foreach("add_")(below, (mean * group["eps"]).to(below[0].dtype), alpha=1.0)
        direction = _torch.foreach("div")(first, below)
        if group["weight_decay"]:
            _torch.foreach("add_")(direction, weights, alpha=group["weight_decay"])
            size, length = _norms(weights, parameters), _norms(list(direction), parameters)
            trust = torch.where((size > 0) & (length > 0), size / length, 1.0)
            _torch.foreach("mul_")(direction, list((trust * rate).unbind()))
        else:
            _torch.foreach("mul_")(direction, rate)
        _torch.foreach("sub_")(weights, direction)


class AdamW(torch.optim.AdamW, OnePass):
    """torch's fused AdamW (arXiv:1711.05101), with its options and its state, in one pass over all parameters.

    As there, `lr` may be a scalar tensor, and while an attribute `found_inf`, a float32 scalar on the device, is 1 a step changes
    nothing. Numbers are computed in float32 and rounded once, when they are stored: with bfloat16 weights the moments are in
    bfloat16 too, as torch's are, so a second moment stands still where a step changes it by less than a 512th.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient.

        RuntimeError: a GradScaler scales the gradients; bfloat16 needs none.
        """
        if getattr(self, "grad_scale", None) is not None:
            raise RuntimeError("bertfast's AdamW takes no scaled gradients: use torch.optim.AdamW with a GradScaler")
        loss = None if closure is None else torch.enable_grad()(closure)()
        parameters, columns, sizes, settings = self.gather()
        if parameters:
            withheld: Tensor | None = getattr(self, "found_inf", None)
            arguments = (sizes, settings, self.rates(), self.norm, self.max_norm, withheld)
            one_pass.op("adamw_step", self.device)(*columns, self.targets(parameters), *arguments)
        return loss

    def is_one_pass(self) -> bool:
        return True


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: those that decay, and biases and layer norms, which do not (Google's BERT)."""
    still = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    kept = [id(p) in still or name.endswith("bias") or ".LayerNorm." in f".{name}" for name, p in trained]
    return [
        {"params": [p for (_, p), keep in zip(trained, kept, strict=True) if not keep], "weight_decay": weight_decay},
        {"params": [p for (_, p), keep in zip(trained, kept, strict=True) if keep], "weight_decay": 0.0},
    ]


def _adamw(config: TrainConfig, parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
    first = next((p for group in parameters for p in group["params"]), None)
    betas = (config.beta1, config.beta2)
    if first is not None and one_pass.runs("adamw_step", first.device):
        return AdamW(parameters, lr=config.learning_rate, betas=betas, eps=config.eps)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, betas=betas, eps=config.eps, fused=True)


def _lamb(config: TrainConfig, parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return Lamb(parameters, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps)


_OPTIMIZERS = {"adamw": _adamw, "lamb": _lamb}


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer over `model`'s trained parameters. Build it after the model was moved and sharded."""
    return _OPTIMIZERS[config.optimizer](config, groups(model, config.weight_decay))


def allow_capture(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Tell torch's own optimizers whether their step is being captured: they refuse a capture that they were not told of, and
    warn of one that they were told of and does not happen. What the fused ones compute is the same."""
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = capturing


def gradient_norm(model: nn.Module) -> Tensor:
    """Global L2 norm of all gradients, over all ranks' shards; a scalar tensor on the model's device."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    if grads and one_pass.runs("gradient_norm", grads[0].device) and one_pass.can_add_up(grads):
        return one_pass.gradient_norm(grads)
    norm = torch.nn.utils.get_total_norm(grads)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip(model: nn.Module, norm: Tensor, max_norm: float) -> None:
    """Scale gradients so that their global norm, which is `norm`, is at most `max_norm`; 0 leaves them."""
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)


def in_one_pass(optimizer: torch.optim.Optimizer) -> TypeGuard[OnePass]:
    """Whether a step of this optimizer clips and writes copies now."""
    return isinstance(optimizer, OnePass) and optimizer.is_one_pass()


def update(
    optimizer: torch.optim.Optimizer, model: nn.Module, norm: Tensor, max_norm: float, copies: Held | None
) -> None:
    """Clip the gradients to `max_norm` (0 leaves them), step, and write the copies of weights that products read.

    norm: of all gradients. In one pass the gradients themselves stay as they were.
    """
    if in_one_pass(optimizer):
        with optimizer.reading(norm if max_norm else None, max_norm, copies):
            optimizer.step()
            if one_pass.is_placing():
                return
            if optimizer.writes_all():
                if copies is not None:
                    copies.refresh_others()
                return
    else:
        clip(model, norm, max_norm)
        allow_capture(optimizer, optimizer.param_groups[0]["params"][0].device)
        optimizer.step()
    if copies is not None:
        copies.refresh()
