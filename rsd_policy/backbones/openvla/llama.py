"""Llama decoder layers of which any range can be run, bidirectional or causal.

Submodules are named as in the checkpoint's files, except that the projections which read the same input are one
matrix each (fewer, larger products): q, k, v are rows of `qkv`, gate and up are rows of `gate_up`. `file_tensors` gives
the rows under the files' names, so that weights are copied straight into them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_policy import kernels
from rsd_policy.backbones.openvla.config import LlamaConfig
from rsd_policy.backbones.openvla.fp8 import Fp8Linear, product, unscaled_product
from rsd_policy.errors import ObservationError

if TYPE_CHECKING:
    from rsd_policy.kernels.llama import Quantised, Unscaled

MAX_POSITIONS = 4096
"""Llama 2's context length, tokens."""


@dataclass
class KeyValueCache:
    """Keys and values of one layer for all positions so far: each [B, heads, positions, head_dim]."""

    keys: Tensor
    values: Tensor

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions; returns keys and values of all."""
        self.keys = torch.cat([self.keys, keys], dim=2)
        self.values = torch.cat([self.values, values], dim=2)
        return self.keys, self.values


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the quotient in float32 as in the reference."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if kernels.enabled():
            from rsd_policy.kernels.llama import rms_norm

            normed = rms_norm(x.reshape(-1, x.shape[-1]), self.weight, self.eps)
            assert isinstance(normed, Tensor)
            return normed.view(x.shape)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with rotary positions; queries see all positions, or in causal mode none after their own."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = width // self.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def file_tensors(self) -> dict[str, Tensor]:
        """Weights under the files' names, sharing memory with the parameters."""
        names = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
        return {**dict(zip(names, self.qkv.weight.chunk(3), strict=True)), "o_proj.weight": self.o_proj.weight}

    def forward(self, x: Tensor, rope: Rope, causal: bool, cache: KeyValueCache | None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            k, v = cache.append(k, v)
        # A single new position may see the whole cache: causal then means the same as no mask.
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=causal and length > 1)
        return self.o_proj(attended.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def file_tensors(self) -> dict[str, Tensor]:
        """Weights under the files' names, sharing memory with the parameters."""
        gate, up = self.gate_up.weight.chunk(2)
        return {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": self.down_proj.weight}

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Rope, causal: bool, cache: KeyValueCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, causal, cache)
        return x + self.mlp(self.post_attention_layernorm(x))

    def fused(
        self, x: Tensor, rope: Rope, causal: bool, only: slice | None = None, add: Unscaled | None = None
    ) -> tuple[Tensor, Unscaled | None]:
        """`forward` in fused kernels, of all positions or only of some, which attend to all of them.

        The residual stream is the products' own accumulator; in fp8 the next norm adds a branch to it.

        Args:
            x: [B, S, hidden_size], contiguous; overwritten with the result unless `only` is given.
            rope, causal: of the stack.
            only: positions.
            add: what the layer before has left to be added to x.

        Returns:
            the residual stream and what is left to be added to it.
        """
        from rsd_policy.kernels.llama import quantise, rms_norm, rotate, silu_times

        attention, mlp, (batch, length, width) = self.self_attn, self.mlp, x.shape
        out, down = attention.o_proj, mlp.down_proj
        in_fp8 = isinstance(out, Fp8Linear)
        first, second = self.input_layernorm, self.post_attention_layernorm
        normed = rms_norm(x.view(-1, width), first.weight, first.eps, quantised=in_fp8, add=add)
        qkv = product(normed, attention.qkv).view(batch, length, 3 * width)
        rotate(qkv, rope.cos, rope.sin, attention.num_heads)
        q, k, v = qkv.view(batch, length, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
        if only is not None:
            q, x, causal = q[:, :, only], x[:, only].contiguous(), False
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        attended = attended.transpose(1, 2).reshape(-1, width)
        rows = x.view(-1, width)
        if isinstance(out, Fp8Linear) and isinstance(down, Fp8Linear):
            branch = unscaled_product(quantise(attended), out)
            normed = rms_norm(rows, second.weight, second.eps, quantised=True, add=branch)
            hidden = cast("Quantised", silu_times(product(normed, mlp.gate_up), quantised=True))
            return x, unscaled_product(hidden, down)
        rows.addmm_(attended, out.weight.t())
        normed = rms_norm(rows, second.weight, second.eps)
        rows.addmm_(cast("Tensor", silu_times(product(normed, mlp.gate_up))), down.weight.t())
        return x, None


class LlamaStack(nn.Module):
    """Token embedding, layers and final norm.

    Args:
        config: sizes.
        causal: whether a position sees only itself and those before it.
    """

    def __init__(self, config: LlamaConfig, causal: bool) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._rope: Rope | None = None

    def forward_layers(self, x: Tensor, start: int, stop: int, caches: list[KeyValueCache] | None = None) -> Tensor:
        """Run layers start .. stop-1; the final norm belongs to the last layer.

        Args:
            x: [B, S, hidden_size]; with caches, the positions that follow the cached ones.
            start: first layer.
            stop: layer after the last one.
            caches: one per layer of the stack, extended in place.

        Returns:
            [B, S, hidden_size]: the reference's `hidden_states[stop]`.

        Raises:
            ObservationError: more than MAX_POSITIONS tokens.
        """
        if kernels.enabled() and caches is None:
            return self.fused(x, start, stop)
        past = caches[start].keys.shape[2] if caches else 0
        rope = self._rope_for(x, past)
        for i in range(start, stop):
            x = self.layers[i](x, rope, self.causal, caches[i] if caches else None)
        return self.norm(x) if start < stop == len(self.layers) else x

    def fused(self, x: Tensor, start: int, stop: int, only: slice | None = None) -> Tensor:
        """`forward_layers` in fused kernels.

        Args:
            x: [B, S, hidden_size], left as it is.
            start: first layer.
            stop: layer after the last one.
            only: return these positions, which are all that the last of the layers then computes; in a causal stack
                they must be the last one.
        """
        from rsd_policy.kernels.llama import add_scaled

        rope = self._rope_for(x, 0)
        x, left = x.clone(), None
        for i in range(start, stop):
            layer = self.layers[i]
            assert isinstance(layer, DecoderLayer)
            x, left = layer.fused(x, rope, self.causal, only if i == stop - 1 else None, left)
        if left is not None:
            add_scaled(x.view(-1, x.shape[-1]), left)
        return self.norm(x) if start < stop == len(self.layers) else x

    def empty_caches(self, x: Tensor) -> list[KeyValueCache]:
        """A cache without positions for every layer, for a batch like x [B, S, hidden_size]."""
        heads = self.config.num_attention_heads
        empty = x.new_empty(len(x), heads, 0, self.config.hidden_size // heads)
        return [KeyValueCache(empty, empty) for _ in self.layers]

    def _rope_for(self, x: Tensor, past: int) -> Rope:
        # One table for all lengths, made once: a captured CUDA graph goes on reading the memory that it has seen.
        table = self._rope
        if table is None or table.cos.device != x.device or table.cos.dtype != x.dtype:
            head_dim = self.config.hidden_size // self.config.num_attention_heads
            table = self._rope = Rope.table(head_dim, self.config.rope_theta, x)
        return table.at(past, x.shape[1])


@dataclass(frozen=True)
class Rope:
    """Cosines and sines of the rotary angles of consecutive positions, each [positions, head_dim]."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def table(cls, head_dim: int, theta: float, like: Tensor) -> Rope:
        """MAX_POSITIONS angles position * theta^(-2i/head_dim), in float32, stored like another tensor."""
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=like.device) / head_dim
        positions = torch.arange(MAX_POSITIONS, dtype=torch.float32, device=like.device)
        angles = torch.outer(positions, 1.0 / theta**exponent)
        angles = torch.cat([angles, angles], dim=-1)
        return cls(angles.cos().to(like.dtype), angles.sin().to(like.dtype))

    def at(self, start: int, length: int) -> Rope:
        """The angles of `length` positions from `start` on, in the table's memory.

        Raises:
            ObservationError: the sequence is longer than the language model can take.
        """
        stop = start + length
        if stop > len(self.cos):
            raise ObservationError(
                f"sequence: expected at most {len(self.cos)} tokens of images and prompt, got {stop}; use fewer cameras"
            )
        return Rope(self.cos[start:stop], self.sin[start:stop])


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary position embedding of [B, heads, S, head_dim]; pairs are (i, i + head_dim/2)."""
    low, high = x.chunk(2, dim=-1)
    return x * rope.cos + torch.cat([-high, low], dim=-1) * rope.sin
