"""The demo model's network: the Llama architecture, small, with the arithmetic that `llama.cpp` does for it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT = 4096
WIDTH = 96
LAYERS = 4
HEADS = 3
HEAD_WIDTH = WIDTH // HEADS
FEED_FORWARD = 256
NORM_EPSILON = 1e-5
ROPE_BASE = 10000.0


class Block(nn.Module):
    """Attention and SwiGLU. The names are the GGUF tensor names, so that writing the file is a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(WIDTH, NORM_EPSILON)
        self.attn_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.attn_k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.attn_v = nn.Linear(WIDTH, WIDTH, bias=False)
        self.attn_output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.ffn_norm = nn.RMSNorm(WIDTH, NORM_EPSILON)
        self.ffn_gate = nn.Linear(WIDTH, FEED_FORWARD, bias=False)
        self.ffn_up = nn.Linear(WIDTH, FEED_FORWARD, bias=False)
        self.ffn_down = nn.Linear(FEED_FORWARD, WIDTH, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        normed = self.attn_norm(hidden)
        query, key, value = (
            layer(normed).view(batch, length, HEADS, HEAD_WIDTH).transpose(1, 2)
            for layer in (self.attn_q, self.attn_k, self.attn_v)
        )
        mixed = F.scaled_dot_product_attention(rotate(query, cos, sin), rotate(key, cos, sin), value, is_causal=True)
        hidden = hidden + self.attn_output(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        normed = self.ffn_norm(hidden)
        return hidden + self.ffn_down(F.silu(self.ffn_gate(normed)) * self.ffn_up(normed))


class Network(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(vocabulary, WIDTH)
        self.blk = nn.ModuleList(Block() for _ in range(LAYERS))
        self.output_norm = nn.RMSNorm(WIDTH, NORM_EPSILON)
        frequency = ROPE_BASE ** (-torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)
        angle = torch.arange(CONTEXT)[:, None] * frequency
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # Layers that write into the residual stream start smaller, so that its size does not grow with depth.
                residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.05 / (2 * LAYERS) ** 0.5 if residual else 0.05)

    def forward(self, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """Logits at the places where `wanted` (batch, length; bool) is true, in order."""
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        hidden = self.token_embd(ids)
        for block in self.blk:
            hidden = block(hidden, cos, sin)
        return F.linear(self.output_norm(hidden[wanted]), self.token_embd.weight)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE over neighbouring pairs, as the engine does it for `llama`: so Q and K are written without permuting."""
    even, odd = heads[..., 0::2], heads[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
