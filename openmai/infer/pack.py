"""Give a model on a CPU the forms that are fastest there."""

from __future__ import annotations

import warnings

import torch
from llvmlite.binding import get_host_cpu_name
from torch import nn

from openmai.base.errors import OpenmaiError
from openmai.cpu.memory import Arena
from openmai.cpu.products import has_avx512
from openmai.infer.blocked import Blocked8BitLinear, BlockedLinear
from openmai.infer.few import FewTokens
from openmai.infer.stack import Stack
from openmai.infer.weights import GROUP, HalfLinear, Int4Linear, Int8Linear, Joint, MklLinear, OneDnnLinear, PackedNorm
from openmai.model.attention import Attention, LatentAttention
from openmai.model.layers import FeedForward
from openmai.model.transformer import Block, Transformer


@torch.no_grad()
def pack(model: Transformer, kind: str = "") -> Transformer:
    """Replace the linear layers and norms of a model on a CPU in fp32 by packed ones; other models stay as they are. Works in place.

    `kind` is "", fp16, int8 or int4. Experts and the latent expansion of MLA, which are not single products, keep fp32. Raises
    OpenmaiError where this machine or this model cannot do it.
    """
    weight = model.embedding.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        if kind:
            raise OpenmaiError(
                f"weights={kind}: for models in fp32 on a CPU, this one is {weight.dtype} on {weight.device.type}; leave it out"
            )
        return model
    eight = Blocked8BitLinear if has_avx512("vnni") else Int8Linear
    if kind == "fp16" or (kind == "int8" and eight is Int8Linear):
        if "fbgemm" not in torch.backends.quantized.supported_engines:
            raise OpenmaiError(f"weights={kind}: this PyTorch has no fbgemm, which is for x86 processors; leave it out")
        torch.backends.quantized.engine = "fbgemm"
    full = fp32_form()
    if not kind and full is nn.Linear:
        return model
    forms: dict[str, type[nn.Module]] = {"": full, "fp16": HalfLinear, "int8": eight, "int4": Int4Linear}
    arena = Arena()
    kept = {id(module.kv_up) for module in model.modules() if isinstance(module, LatentAttention)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(fbgemm|torch.quantize)", UserWarning)  # deprecated; pyproject.toml holds the version of PyTorch
        for module in list(model.modules()):
            if isinstance(module, Attention):
                _join(module, "q", "k", "v")
            elif isinstance(module, FeedForward) and module.config.gated:
                _join(module, "up", "gate")
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and id(child) not in kept:
                    fits = kind != "int4" or (child.in_features % GROUP == 0 and child.out_features % 16 == 0)
                    form = forms[kind] if fits else full
                    setattr(module, name, form(child, arena) if issubclass(form, BlockedLinear) else form(child))
                elif isinstance(child, nn.RMSNorm):
                    setattr(module, name, PackedNorm(child))
    for module in model.modules():
        if isinstance(module, Block) and FewTokens.fits(module):
            module.few = FewTokens(module)
    if Stack.fits(model):
        model.few = Stack(model)
    return model


def fp32_form() -> type[nn.Module]:
    """Return the form for matrices in fp32 that is fastest on this processor, the same at each start: ours with AVX-512, else a library's.

    On AMD MKL takes 1.5 times as long as oneDNN for a row and nearly three times for 16 (docs/LOG.md).
    """
    if has_avx512():
        return BlockedLinear
    if get_host_cpu_name().startswith("zn") and torch.backends.mkldnn.is_available():
        return OneDnnLinear
    return MklLinear if torch.backends.mkl.is_available() else nn.Linear


def _join(module: nn.Module, *names: str) -> None:
    """Replace linear layers of a module by one `joint`."""
    module.joint = Joint(names, [getattr(module, name) for name in names])
    for name in names:
        delattr(module, name)
