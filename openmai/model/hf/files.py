"""Weights on disk, one tensor at a time: folders of safetensors files to read, and files that are written in pieces."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
FP8_BLOCK = 128  # rows and columns that share a scale (DeepSeek-V3, inference/fp8_cast_bf16.py)
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)  # OCP MX 1.0, E2M1
# Buffers that old checkpoints carry along, and what the text model does not have.
IGNORED = re.compile(
    r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$|^(model\.)?(vision_tower|multi_modal_projector)\.|(_scale_inv|_scales)$"
)


class Tensors:
    """The tensors of one safetensors file, read whole or by rows as they are asked for; nothing is mapped, so a file may be of any size."""

    def __init__(self, file: Path) -> None:
        broken = f"{file}: cannot be read ({{}}); copy or download the file again"
        try:
            self.handle = file.open("rb", buffering=0)
            length = int.from_bytes(self.handle.read(8), "little")
            size = file.stat().st_size
            if length > size - 8:
                raise OpenmaiError(broken.format("its header is longer than the file"))
            header = json.loads(self.handle.read(length))
        except OSError as error:
            raise OpenmaiError(broken.format(error.strerror)) from None
        except ValueError:
            raise OpenmaiError(broken.format("not a safetensors file")) from None
        header.pop("__metadata__", None)
        self.start, self.entries = 8 + length, header
        end = self.start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != end:
            raise OpenmaiError(broken.format(f"{size} bytes instead of {end}"))
        unknown = {entry["dtype"] for entry in header.values()} - set(DTYPES.values())
        if unknown:
            raise OpenmaiError(f"{file}: numbers of type {', '.join(sorted(unknown))} are not supported")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.entries[name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        return next(dtype for dtype, code in DTYPES.items() if code == self.entries[name]["dtype"])

    def read(self, name: str, row: int | None = None) -> Tensor:
        """Return a tensor, or element `row` of its first axis."""
        dtype, shape = self.dtype(name), self.shape(name)
        shape = shape if row is None else shape[1:]
        data = bytearray(math.prod(shape) * dtype.itemsize)
        position, view = self.start + self.entries[name]["data_offsets"][0] + (row or 0) * len(data), memoryview(data)
        while view:
            count = os.preadv(self.handle.fileno(), [view], position)
            if not count:
                raise OpenmaiError(f"{self.handle.name}: the file became shorter while it was read")
            view, position = view[count:], position + count
        return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)


class Folder:
    """The tensors of a Hugging Face folder, read lazily; FP8 (DeepSeek-V3) and MXFP4 (gpt-oss) become bf16 on the way."""

    def __init__(self, path: Path) -> None:
        index = path / "model.safetensors.index.json"
        listed = (
            sorted(set(read_json(index)["weight_map"].values())) if index.exists() else sorted(p.name for p in path.glob("*.safetensors"))
        )
        if not listed:
            raise OpenmaiError(f"{path}: no *.safetensors file; convert older formats with transformers' save_pretrained first")
        self.path = path
        self.where: dict[str, tuple[Tensors, str]] = {}
        for name in listed:
            tensors = Tensors(path / name)
            self.where |= {_text_name(stored): (tensors, stored) for stored in tensors.entries}

    @property
    def names(self) -> set[str]:
        """Names of the tensors as the text model alone would have them; quantised ones count once."""
        return {name.removesuffix("_blocks") for name in self.where if not IGNORED.search(name)}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, of MXFP4 as it will be."""
        if name in self.where:
            return self._shape(name)
        experts, rows, groups, _ = self._shape(f"{name}_blocks")
        return experts, groups * 32, rows

    def dtype(self, name: str) -> torch.dtype:
        """Return the type that `read` gives."""
        if name not in self.where:
            return torch.bfloat16
        tensors, stored = self.where[name]
        dtype = tensors.dtype(stored)
        return torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype

    def read(self, name: str, row: int | None = None) -> Tensor:
        """Return a tensor, or element `row` of its first axis."""
        if name not in self.where:
            return self._from_fp4(name, row)
        value = self._stored(name, row)
        if value.dtype != torch.float8_e4m3fn:
            return value
        if f"{name}_scale_inv" not in self.where:
            raise OpenmaiError(f"{self.path}: {name} is FP8, but its scales {name}_scale_inv are missing")
        scales = self._stored(f"{name}_scale_inv").float()
        scales = scales.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)[: value.shape[0], : value.shape[1]]
        return (value.float() * scales).bfloat16()

    def _from_fp4(self, name: str, row: int | None) -> Tensor:
        """Decode MXFP4: 16 bytes of two numbers each share an exponent; the matrices come out transposed, as gpt-oss has them."""
        blocks, scales = (self._stored(f"{name}_{part}", row) for part in ("blocks", "scales"))
        table = torch.tensor(FP4, dtype=torch.bfloat16)
        numbers = torch.stack((table[(blocks & 15).long()], table[(blocks >> 4).long()]), dim=-1).flatten(-2)
        return torch.ldexp(numbers, scales.int().unsqueeze(-1) - 127).flatten(-2).bfloat16().mT

    def _stored(self, name: str, row: int | None = None) -> Tensor:
        tensors, stored = self.where[name]
        return tensors.read(stored, row)

    def _shape(self, name: str) -> tuple[int, ...]:
        tensors, stored = self.where[name]
        return tensors.shape(stored)


def _text_name(name: str) -> str:
    """Return the name that a tensor has in the text model alone: Gemma 3 stores it as part of a larger one, GPT-2 without its prefix."""
    name = re.sub(r"^(model\.language_model|language_model\.model)\.", "model.", name)
    name = re.sub(r"^language_model\.lm_head", "lm_head", name)
    return f"transformer.{name}" if re.match(r"(wte|wpe|ln_f|h\.\d+)\.", name) else name


class Writer:
    """A safetensors file of known tensors that is filled piece by piece, in any order; it appears under its name when all is there.

    Memory holds what is being written and no more, whatever the size of the file.
    """

    def __init__(self, file: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.file, self.partial = file, file.with_name(f".{file.name}.part")
        self.offsets: dict[str, int] = {}
        self.tensors = dict(tensors)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in self.tensors.items():
            self.offsets[name] = end
            end += math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [self.offsets[name], end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.start, self.size, self.written = 8 + len(text), end, 0
        free = shutil.disk_usage(file.parent).free
        if self.start + end > free:
            raise OpenmaiError(f"{file}: needs {(self.start + end) / 1e9:.1f} GB, only {free / 1e9:.1f} GB are free on that disk")
        self.handle = self.partial.open("wb")
        self.handle.write(len(text).to_bytes(8, "little") + text)
        self.handle.truncate(self.start + end)

    def write(self, name: str, value: Tensor, row: int | None = None) -> None:
        """Write a tensor, or element `row` of its first axis, converted to the type that was announced."""
        dtype, shape = self.tensors[name]
        expected = shape if row is None else shape[1:]
        assert tuple(value.shape) == expected, f"{name}: {tuple(value.shape)} is written where {expected} was announced"
        data = value.to(dtype).contiguous().flatten().view(torch.uint8).numpy()
        self.handle.seek(self.start + self.offsets[name] + (row or 0) * len(data))
        self.handle.write(data.data)
        self.written += len(data)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self.handle.close()
        if kind is not None:
            self.partial.unlink(missing_ok=True)
            return
        assert self.written == self.size, f"{self.file}: {self.written} of {self.size} bytes were written"
        self.partial.replace(self.file)
