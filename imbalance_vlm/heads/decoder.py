"""The lightweight decoder.

[0] Wang, Yu, Wang, Heng, Chen, Ye, Xie, Xie, Zhang. Exploring Vision-Language Models for Imbalanced Learning.
    IJCV 2024. (depth 3, 4 heads, MLP ratio 1/2, a linear layer on the class token)

    x <- x + attention(norm(x));  x <- x + mlp(norm(x));  z = W x_class + b

Without the last layer, 8.87 M parameters at width 768 and 15.76 M at width 1024.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from imbalance_vlm.components.ranges import Count, Positive, Share
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head, linear_layer


class DecoderHead(Head):
    """Transformer blocks over all image tokens, then a linear layer on the class token: (B, T, w) -> (B, C).

    Args:
        width: w of the tokens.
        num_classes: C.
        directions: (C, w) unit rows to start the last layer from; None for a random start.
        init: what the last layer starts from: "random", "text" (text features mapped back through the image projection)
            or "class_mean".
        depth: number of blocks.
        heads: number of attention heads; must divide the width.
        mlp_ratio: hidden width of the MLP over w.
        drop: dropout after attention and MLP.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        directions: Tensor | None = None,
        *,
        init: Literal["random", "text", "class_mean"] = "random",
        depth: Count = 3,
        heads: Count = 4,
        mlp_ratio: Positive = 0.5,
        drop: Share = 0.0,
    ) -> None:
        from timm.models.vision_transformer import Block  # slow to import, and not needed to list components

        super().__init__()
        if width % heads:
            raise InputError(f"`heads` must divide the width of the tokens, {width}, got {heads}")
        self.blocks = nn.Sequential(
            *(
                Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, proj_drop=drop, attn_drop=drop)
                for _ in range(depth)
            )
        )
        self.layer = linear_layer(width, num_classes, directions)

    def embed(self, features: Tensor) -> Tensor:
        """(B, w) class tokens after the blocks, of all tokens (B, T, w)."""
        embeddings: Tensor = self.blocks(features)[:, 0]
        return embeddings

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.layer.weight, self.layer.bias
