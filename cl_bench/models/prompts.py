"""A pool of prompts for a vision transformer that is not trained (L2P, Wang et al. 2022).

"Learning to prompt for continual learning", arXiv:2112.08654, by the authors' code
(google-research/l2p). d is the width of the transformer, T the number of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.models.added import Added
from cl_bench.models.head import head_name, head_of

INIT_MAX = 0.01  # first values of keys and prompts are uniform between 0 and this
Function = Callable[[Tensor], Tensor]


class Transformer(NamedTuple):
    """A vision transformer in three parts."""

    embed: Function  # images (B, C, H, W) -> tokens with positions (B, T, d), the class token first
    encode: Function  # tokens (B, T, d) -> (B, T, d) after all blocks and the last norm
    classify: Function  # (B, d) -> (B, K)


class Prompted(Added):
    """The transformer sees `chosen` of its `number` prompts before the tokens of an image.

    A prompt is `length` tokens, without positions, and has a key (d,). An image gets the prompts
    whose keys have the largest cosine with its query, the class token after the last block of the
    transformer without prompts. The head classifies the mean of the prompts' outputs. Prompts and
    head are trained; keys have a gradient in the objective of L2P alone, and otherwise keep their
    first values.
    """

    def __init__(self, net: nn.Module, number: int, length: int, chosen: int) -> None:
        super().__init__(net, head_name(net))
        self.transformer = parts_of(net)
        net.requires_grad_(False).eval()
        head_of(net).requires_grad_(True)
        self.chosen = chosen
        weight = head_of(net).weight
        sizes = (number, weight.shape[1]), (number, length, weight.shape[1])
        with torch.device(weight.device):
            keys, prompts = (nn.Parameter(INIT_MAX * torch.rand(size)) for size in sizes)
        self.keys, self.prompts = keys, prompts
        self._shows_similarity = False

    def train(self, mode: bool = True) -> Prompted:
        """As PyTorch's, but that the transformer itself stays in evaluation mode."""
        super().train(mode)
        self.body.eval()
        return self

    @contextmanager
    def similarity(self) -> Iterator[None]:
        """Inside the block a column follows the logits: the sum of cosines of the chosen keys."""
        self._shows_similarity = True
        try:
            yield
        finally:
            self._shows_similarity = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K), or (B, K + 1) inside `similarity`."""
        embed, encode, classify = self.transformer
        with torch.no_grad():
            tokens = embed(x)
            query = F.normalize(encode(tokens)[:, 0].to(self.keys.dtype), dim=1)
        # not a matrix product, which autocast would round to bfloat16, so that keys would tie
        cosines = (query[:, None] * F.normalize(self.keys, dim=1)).sum(2)
        best, indices = cosines.topk(self.chosen, dim=1)
        prompts = self.prompts[indices].flatten(1, 2).to(tokens.dtype)
        outputs = encode(torch.cat([prompts, tokens], 1))[:, : prompts.shape[1]]
        logits = classify(outputs.mean(1))
        return torch.cat([logits, best.sum(1, True)], 1) if self._shows_similarity else logits


def with_prompts(net: nn.Module, number: int, length: int, chosen: int) -> Prompted:
    """The network with a pool of prompts.

    Raises UserError where it is no vision transformer with a class token, or has fewer prompts than
    an image gets.
    """
    if chosen > number:
        raise UserError(
            f"model.prompts={[number, length, chosen]}: an image cannot get {chosen} of {number} "
            "prompts; the values are their number, the tokens of each, and those that an image gets"
        )
    return Prompted(net, number, length, chosen)


def parts_of(net: Any) -> Transformer:
    """The parts of a vision transformer of torchvision or timm; UserError for other networks."""
    family = type(net).__module__.partition(".")[0]
    if type(net).__name__ == "VisionTransformer" and family == "torchvision":
        return Transformer(
            lambda x: _torchvision_tokens(net, x),
            lambda tokens: net.encoder.ln(net.encoder.layers(tokens)),
            net.heads,
        )
    known = type(net).__name__ == "VisionTransformer" and family == "timm"
    if known and net.cls_token is None:
        raise UserError(
            "model.prompts: the query of an image is the class token, which this network lacks; "
            "use another model.name"
        )
    if known:
        return Transformer(
            lambda x: net.norm_pre(net._pos_embed(net.patch_embed(x))),
            lambda tokens: net.norm(net.blocks(tokens)),
            lambda features: net.head(net.fc_norm(features)),
        )
    raise UserError(
        "model.prompts: goes with vision transformers with a class token, such as model=timm or "
        f"model=torchvision model.name=vit_b_16; this is {type(net).__name__}"
    )


def _torchvision_tokens(net: Any, x: Tensor) -> Tensor:
    patches = net._process_input(x)
    first = net.class_token.expand(len(patches), -1, -1)
    return torch.cat([first, patches], 1) + net.encoder.pos_embedding
