"""How the processes of a run divide the work; plain data, checked before anything is built."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from openmai.base.config import Config
from openmai.base.errors import OpenmaiError
from openmai.model.config import ModelConfig
from openmai.model.stages import Schedule

Precision = Literal["fp32", "bf16", "float8"]


class Layout(Config):
    """Processes = pp x dp_replicate x dp_shard x cp x tp; experts are divided over ep of the last three."""

    pp: int = Field(1, gt=0)
    "stages of a pipeline of layers"
    schedule: Schedule = "1f1b"
    "of the pipeline: 1f1b, interleaved, zero-bubble (ZB1P, interleaved) or zbv"
    stages_each: int = Field(0, ge=0)
    "stages per process; 0: one with 1f1b, else two"
    dp_replicate: int = Field(1, gt=0)
    "groups of processes that each hold the whole model between them (HSDP when dp_shard is above 1)"
    dp_shard: int = Field(0, ge=0)
    "processes that divide weights, gradients and optimizer state (FSDP); 0: as many as are left"
    cp: int = Field(1, gt=0)
    "processes that share each row of tokens, with attention in a ring"
    tp: int = Field(1, gt=0)
    "processes that divide heads, feed-forwards and vocabulary"
    sequence_parallel: bool = True
    "between the parts that tp divides, divide the tokens"
    ep: int = Field(1, gt=0)
    "processes that divide the experts, taken from dp_shard x cp x tp"
    checkpointing: Literal["none", "selective", "full"] = "none"
    "what of a layer is computed again for the backward pass: nothing, all but products and attention, or all"

    @property
    def data(self) -> int:
        """Groups of processes with rows of their own."""
        return self.dp_replicate * self.dp_shard

    @property
    def copies(self) -> int:
        """Processes that work on the same rows."""
        return self.pp * self.cp * self.tp

    @property
    def num_stages(self) -> int:
        """Stages of the whole pipeline."""
        return self.pp * (self.stages_each or (1 if self.schedule == "1f1b" else 2)) if self.pp > 1 else 1

    def resolve(self, processes: int, batch_rows: int, micro_rows: int) -> Layout:
        """Return the layout with every number known.

        Raises OpenmaiError that names the nearest layouts if it does not fit the number of processes or the rows of a batch.
        """
        fixed = self.pp * self.dp_replicate * self.cp * self.tp
        shard = self.dp_shard or max(1, processes // fixed)
        if fixed * shard != processes:
            raise OpenmaiError(
                f"layout: {self._product(shard)} is not {processes}, the number of processes; nearest: {self._nearest(processes)}"
            )
        region = shard * self.cp * self.tp
        if region % self.ep:
            fitting = [n for n in range(1, region + 1) if region % n == 0]
            raise OpenmaiError(f"layout.ep={self.ep} does not divide dp_shard x cp x tp = {region}; it can be {_or(fitting)}")
        groups = self.dp_replicate * shard
        if batch_rows % (groups * micro_rows):
            below = [n for n in range(groups, 0, -1) if batch_rows % (n * micro_rows) == 0]
            raise OpenmaiError(
                f"batch_rows={batch_rows} cannot be divided among {groups} data-parallel groups in micro-batches of "
                f"micro_rows={micro_rows}; take {below[0] if below else 1} groups, or a multiple of {groups * micro_rows} rows"
            )
        found = self.model_copy(update={"dp_shard": shard})
        found._check_schedule(batch_rows // (groups * micro_rows))
        return found

    def _check_schedule(self, micro_batches: int) -> None:
        if self.pp == 1:
            return
        if self.schedule.startswith("z") and self.checkpointing != "none":
            raise OpenmaiError(
                f"layout.checkpointing={self.checkpointing} does not go with schedule {self.schedule}, which passes backwards in two "
                f"halves; take 1f1b or interleaved, or checkpointing none"
            )
        each = self.num_stages // self.pp
        if (self.schedule == "1f1b" and each != 1) or (self.schedule == "zbv" and each != 2):
            raise OpenmaiError(f"layout.stages_each={each}: schedule {self.schedule} has {1 if self.schedule == '1f1b' else 2}")
        if self.schedule == "1f1b" and micro_batches < self.pp:
            raise OpenmaiError(
                f"layout.pp={self.pp} wants at least as many micro-batches, there are {micro_batches}; "
                f"raise batch_rows {-(-self.pp // micro_batches)}-fold or lower micro_rows"
            )
        if self.schedule in ("interleaved", "zero-bubble"):
            rounds = max(1, micro_batches // self.pp)
            if micro_batches % rounds:
                raise OpenmaiError(
                    f"layout.schedule={self.schedule} wants micro-batches in whole rounds of pp={self.pp}, there are {micro_batches}; "
                    f"take {micro_batches // self.pp * self.pp} or {(micro_batches // self.pp + 1) * self.pp}, or schedule 1f1b"
                )
        if self.schedule == "zbv" and micro_batches < 2 * self.pp:
            raise OpenmaiError(f"layout.schedule=zbv wants at least 2 x pp = {2 * self.pp} micro-batches, there are {micro_batches}")

    def check_model(self, config: ModelConfig, context: int) -> None:
        """Raise OpenmaiError, with what would fit, if this layout cannot divide such a model or rows of `context` tokens."""
        for reason in (*self._against_tp(config, context), *self._against_rest(config, context)):
            raise OpenmaiError(f"layout: {reason}")

    def _against_tp(self, config: ModelConfig, context: int) -> list[str]:
        tp, found = self.tp, []
        if tp == 1:
            return []
        sizes = {"num_heads": config.num_heads, "vocab_size": config.vocab_size, "ffn_width": config.ffn_width}
        if config.moe and config.moe.num_shared:
            sizes["moe.num_shared x expert_width"] = config.moe.num_shared * config.moe.expert_width
        if config.moe and not any(not config.is_moe(layer) for layer in range(config.num_layers)):
            del sizes["ffn_width"]
        for name, size in sizes.items():
            if size % tp:
                fitting = [n for n in range(1, tp) if all(value % n == 0 for value in sizes.values())]
                found.append(f"tp={tp} does not divide {name}={size}; take tp={_or(fitting)}, or {name}={-(-size // tp) * tp}")
        if not config.mla and config.kv_heads % tp and tp % config.kv_heads:
            found.append(f"tp={tp} and num_kv_heads={config.kv_heads}: one must divide the other")
        few = not config.mla and config.kv_heads % tp != 0
        if few and (config.value_embeddings or (config.qk_norm and config.qk_norm_span == "all")):
            found.append(f"tp={tp} exceeds num_kv_heads={config.kv_heads}, which value embeddings and norms over all heads do not allow")
        if config.qk_norm and config.qk_norm_span == "all" and (config.norm == "layer" or config.norm_weight == "offset"):
            found.append("tp cannot divide a LayerNorm or OffsetNorm over all heads (qk_norm_span=all)")
        if config.moe and not self.sequence_parallel:
            found.append("a mixture with tp needs sequence_parallel=true, which divides its tokens")
        if self.sequence_parallel and context % (tp * self.cp):
            found.append(f"tp x cp = {tp * self.cp} does not divide context={context}; take {context // (tp * self.cp) * tp * self.cp}")
        if config.smear or config.num_predict:
            found.append("tp does not work with smear or num_predict yet")
        return found

    def _against_rest(self, config: ModelConfig, context: int) -> list[str]:
        found = []
        if self.cp > 1 and context % (2 * self.cp):
            found.append(
                f"2 x cp = {2 * self.cp} does not divide context={context}; take {context // (2 * self.cp) * 2 * self.cp or 2 * self.cp}"
            )
        if self.cp > 1 and (config.smear or config.num_predict):
            found.append("cp does not work with smear or num_predict yet")
        if self.ep > 1 and not config.moe:
            found.append(f"ep={self.ep} for a model without experts; take ep=1")
        if self.ep > 1 and config.moe and config.moe.num_experts % self.ep:
            fitting = [n for n in range(1, self.ep) if config.moe.num_experts % n == 0]
            found.append(f"ep={self.ep} does not divide num_experts={config.moe.num_experts}; take {_or(fitting)}")
        if self.num_stages > config.num_layers:
            found.append(
                f"{self.num_stages} stages for num_layers={config.num_layers}; take pp x stages_each of at most {config.num_layers}"
            )
        if self.pp > 1 and config.num_predict:
            found.append("pp does not work with num_predict yet")
        each = self.num_stages // self.pp
        if each > 1 and config.residual_scalars:
            found.append("residual_scalars, which every stage needs, go with one stage per process: schedule 1f1b")
        if self.pp > 1 and self.schedule == "zbv" and config.tied_embeddings:
            found.append("tied_embeddings do not go with zbv, which puts both ends of the pipeline into one process; take 1f1b")
        return found

    def _product(self, shard: int) -> str:
        axes = {"pp": self.pp, "dp_replicate": self.dp_replicate, "dp_shard": shard, "cp": self.cp, "tp": self.tp}
        return " x ".join(f"{name}={size}" for name, size in axes.items() if size > 1 or name.startswith("dp"))

    def _nearest(self, processes: int) -> str:
        """Name layouts for this number of processes that differ least from what was asked."""
        asked = {"pp": self.pp, "dp_replicate": self.dp_replicate, "cp": self.cp, "tp": self.tp}
        options = []
        for pp, replicate, cp, tp in _factors(processes, 4):
            shard = processes // (pp * replicate * cp * tp)
            found = {"pp": pp, "dp_replicate": replicate, "cp": cp, "tp": tp}
            distance = sum(abs(found[name].bit_length() - size.bit_length()) + (found[name] != size) for name, size in asked.items())
            options.append((distance + (self.dp_shard not in (0, shard)), found | {"dp_shard": shard}))
        best = sorted(options, key=lambda option: (option[0], str(option[1])))[:3]
        return "; ".join(
            " x ".join(f"{name}={size}" for name, size in option.items() if size > 1 or name.startswith("dp")) for _, option in best
        )


def _factors(product: int, count: int) -> list[tuple[int, ...]]:
    """Return all `count`-tuples of numbers whose product divides `product`."""
    if count == 0:
        return [()]
    return [(n, *rest) for n in range(1, product + 1) if product % n == 0 for rest in _factors(product // n, count - 1)]


def _or(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers)) or "1"
