"""python -m pytest tests/test_float8.py"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmai.base.errors import OpenmaiError
from openmai.model import float8
from openmai.model.config import ModelConfig
from openmai.model.float8 import Float8Linear, float8_linear, use_float8
from openmai.model.transformer import Transformer

SHAPE = {"vocab_size": 64, "num_layers": 2, "width": 32, "num_heads": 2, "ffn_width": 48, "context": 16}


def rounded(x: Tensor) -> Tensor:
    """Each row scaled to the range of e4m3, rounded, and scaled back."""
    scale = x.abs().amax(dim=1, keepdim=True) / 448
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def test_products_are_those_of_rounded_rows_and_the_weights_gradient_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(*size, generator=generator) for size in ((3, 7, 32), (48, 32), (3, 7, 48)))
    x = x * torch.logspace(-4, 3, 7)[:, None]  # rows of very different sizes keep their precision
    bias = torch.randn(48, generator=generator)
    for part in (x, weight, bias):
        part.requires_grad_()
    y = float8_linear(x, weight, bias)
    y.backward(grad)
    rows, back = x.detach().flatten(0, 1), grad.flatten(0, 1)
    assert torch.allclose(y.detach().flatten(0, 1), rounded(rows) @ rounded(weight.detach()).T + bias.detach(), rtol=1e-5, atol=1e-5)
    assert x.grad is not None
    assert torch.allclose(x.grad.flatten(0, 1), rounded(back) @ rounded(weight.detach().T.contiguous()).T, rtol=1e-5, atol=1e-5)
    assert weight.grad is not None
    assert torch.allclose(weight.grad, back.T @ rows, rtol=1e-5, atol=1e-3)
    exact = F.linear(x, weight, bias).detach()
    assert 0.001 < ((y.detach() - exact).norm() / exact.norm()).item() < 0.05


def test_rows_of_zeros_and_odd_sides_are_multiplied() -> None:
    weight = torch.randn(32, 32)
    assert float8_linear(torch.zeros(2, 32), weight).eq(0).all()
    odd = torch.randn(20, 32)
    x = torch.randn(2, 32)
    assert torch.equal(float8_linear(x, odd), F.linear(x, odd))


def test_only_linear_layers_of_the_blocks_change_and_the_model_stays_near() -> None:
    model = Transformer(ModelConfig.model_validate(SHAPE | {"qk_norm": True}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    low = copy.deepcopy(model)
    use_float8(low, "cpu")
    kinds = {name: type(module) for name, module in low.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, kind in kinds.items() if kind is not Float8Linear} == {"head"}
    assert [name for name, _ in low.named_parameters()] == [name for name, _ in model.named_parameters()]
    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    exact, found = model(ids), low(ids)
    assert 0 < (found - exact).norm() / exact.norm() < 0.2


def test_it_compiles_without_a_break() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 32), torch.randn(48, 32, requires_grad=True)
    compiled = torch.compile(float8_linear, backend="aot_eager", fullgraph=True)
    y = compiled(x, weight)
    y.sum().backward()
    assert torch.equal(y, float8_linear(x, weight))
    assert weight.grad is not None


def test_a_gpu_without_such_products_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8.torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(float8.torch.cuda, "get_device_name", lambda _: "A100")
    with pytest.raises(OpenmaiError, match="A100 has no products of 8-bit floats; take precision=bf16"):
        use_float8(Transformer(ModelConfig.model_validate(SHAPE)), "cuda")
