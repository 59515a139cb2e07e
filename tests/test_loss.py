"""OMP_NUM_THREADS=1 pytest tests/test_loss.py: chunked losses against whole logits, their memory, and prediction further ahead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_model import BASE, make, tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openmai.model import loss as losses
from openmai.model.config import ModelConfig
from openmai.model.loss import IGNORE, stream_nats, summed_nats, token_nats
from openmai.model.transformer import Transformer

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"logit_softcap": 2.0},
    "bias": {"head_bias": True},
    "tied": {"tied_embeddings": True},
    "all": {"logit_softcap": 2.0, "head_bias": True, "tied_embeddings": True},
}


def targets_of(ids_BT: Tensor) -> Tensor:
    """The next tokens; some count nothing, among them a whole row."""
    targets_BT = ids_BT.roll(-1, dims=1)
    targets_BT[:, -1] = IGNORE
    targets_BT[0, 2:5] = IGNORE
    targets_BT[2] = IGNORE
    return targets_BT


def whole(model: Transformer, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """The slow twin: all logits at once."""
    return F.cross_entropy(model(ids_BT).flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE, reduction="none").view_as(targets_BT)


def gradients(model: Transformer, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_losses_equal_those_of_whole_logits(head: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and all gradients, of losses weighted in an arbitrary way, in chunks of one token, of seven, and in one."""
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 97 * rows_at_once)
    model, ids = make("grouped", **HEADS[head]).train(), tokens(3, 11)
    targets = targets_of(ids)
    weights = torch.rand(3, 11, generator=torch.Generator().manual_seed(2))
    expected, found = whole(model, ids, targets), token_nats(model, ids, targets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not found[targets == IGNORE].any()
    exact = copy.deepcopy(model).double()  # in fp32 a processor's order of sums moves the last bits of gradients by as much
    fast, plain = (gradients(exact, (nats(exact, ids, targets) * weights).sum()) for nats in (token_nats, whole))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    summed, none = summed_nats(model, ids, targets)
    assert none is None
    expected = whole(model, ids, targets).sum()
    torch.testing.assert_close(summed, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradients(model, summed * 0.3), gradients(model, expected * 0.3), rtol=0, atol=1e-5)


def test_losses_without_gradients() -> None:
    """A frozen head, and no gradients at all."""
    model, ids = make("grouped").train(), tokens(3, 11)
    targets = targets_of(ids)
    expected = whole(model, ids, targets)
    with torch.no_grad():
        torch.testing.assert_close(token_nats(model, ids, targets), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(summed_nats(model, ids, targets)[0], expected.sum(), rtol=1e-6, atol=1e-5)
    model.head.requires_grad_(False)
    found = gradients(model, summed_nats(model, ids, targets)[0])
    assert "head.weight" not in found
    torch.testing.assert_close(found, gradients(model, whole(model, ids, targets).sum()), rtol=0, atol=1e-5)


def test_a_stream_of_tokens_is_predicted_once_each() -> None:
    """Every token but the first and the ends of texts, each from its window alone."""
    model, ids = make("grouped"), tokens(1, 50)[0]
    expected = 0.0
    for start in range(0, 49, 16):
        window = ids[start : start + 17]
        nats = whole(model, window[None, :-1], window[None, 1:])[0]
        expected += nats[window[1:] != 5].sum().item()
    assert stream_nats(model, ids.numpy(), context=16, end_of_text=5, rows=2) == pytest.approx(expected, abs=1e-3)


class Largest(TorchDispatchMode):
    """Remembers how many bytes the largest tensor had that any operation returned, in the backward pass as well."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        self.bytes = max([self.bytes, *(leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


@pytest.mark.parametrize("compute", [summed_nats, token_nats])
def test_no_tensor_holds_all_logits(compute: Callable[..., Any]) -> None:
    """4,096 tokens of a vocabulary of 32,768: 512 MiB of logits at once, and 32 MiB in pieces, forward and backward.

    On the meta device, which knows sizes only.
    """
    shape = {"vocab_size": 32768, "num_layers": 1, "head_bias": True, "logit_softcap": 15.0, "num_predict": 1}
    with torch.device("meta"):
        model, ids = Transformer(ModelConfig.model_validate({**BASE, **shape})).train(), torch.zeros(64, 64, dtype=torch.long)
    with Largest() as largest:
        result = compute(model, ids, ids)
        (sum(result) if isinstance(result, tuple) else result.sum()).backward()
    print(f"{compute.__name__}: largest tensor {largest.bytes / 2**20:.0f} MiB")
    assert largest.bytes <= losses.CHUNK_BYTES
    with Largest() as largest, torch.no_grad():
        model(ids)
    assert largest.bytes == 4096 * 32768 * 4


def test_predictors_see_one_token_more_each() -> None:
    """Predictor k at position i depends on the tokens up to i + k and on no later one, and predicts token i + k + 1."""
    model, ids = make("predict"), tokens(1, 12)

    def ahead(ids: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return model.streams_ahead(model.stream(ids), ids)

    before = ahead(ids)
    assert [stream.shape for stream in before] == [(1, 11, 32), (1, 10, 32)]
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 97
    for k, (one, other) in enumerate(zip(before, ahead(changed), strict=True), start=1):
        differs = (one - other).abs().amax(-1)[0] > 1e-5
        assert differs.nonzero().flatten().tolist() == list(range(6 - k, 12 - k))


def test_loss_ahead_is_that_of_the_tokens_ahead() -> None:
    """Targets are given for the next token; those of predictor k lie k further on. Values and gradients, over whole logits."""
    model, ids = make("predict", logit_softcap=2.0).train(), tokens(3, 12)
    inputs, targets = ids[:, :-1], ids[:, 1:].clone()
    targets[1, 4:7] = IGNORE
    loss, found = summed_nats(model, inputs, targets)
    assert found is not None
    expected = torch.zeros(())
    for k, stream in enumerate(model.streams_ahead(model.stream(inputs), inputs), start=1):
        logits = 2 * torch.tanh(model.head(stream) / 2)
        for b in range(3):
            for i in range(stream.shape[1]):
                if targets[b, i + k] != IGNORE:
                    expected = expected - logits[b, i].log_softmax(-1)[ids[b, i + k + 1]] / 2
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(loss, whole(model, inputs, targets).sum(), rtol=1e-6, atol=1e-4)
    found_gradients = gradients(model, found)
    torch.testing.assert_close(found_gradients, gradients(model, expected), rtol=0, atol=2e-5)
    assert found_gradients.keys() == {name for name, _ in model.named_parameters() if name != "norm.weight"}
