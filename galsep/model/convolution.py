"""Convolutions that keep their weights as oneDNN wants them, and do what follows in the same pass.

In each call PyTorch has oneDNN bring a convolution's weights into the layout that suits the
processor and the size of the pictures; of small ones that takes as long as the convolution itself.
In inference mode, on a CPU, it is done once for each size. That takes operators that PyTorch has
for its compiler and may change; where they are not there, the convolution is PyTorch's own.
"""

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conv2d"]

_X86 = platform.machine() in ("x86_64", "AMD64")


class Conv2d(nn.Conv2d):
    """A convolution, a picture to add to it and a ReLU: any of the last two may be left out.

    Parameters
    ----------
    args, kwargs
        Those of :class:`torch.nn.Conv2d`; padding is a number.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._laid_out: tuple[object, dict[object, tuple[Tensor, Tensor | None]]] = (None, {})

    def __getstate__(self) -> dict[str, Any]:
        # Neither copies nor pickles take the laid-out weights, which belong to these.
        return self.__dict__ | {"_laid_out": (None, {})}

    def forward(self, x: Tensor, plus: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """Give ``relu(plus + convolution(x))``.

        Parameters
        ----------
        x : FloatTensor[n, c, h, w]
        plus : FloatTensor, optional
            Of the result's shape.
        relu : bool
            Whether what is negative becomes 0.
        """
        if not torch.is_inference_mode_enabled() or x.device.type != "cpu" or not _has_operators():
            out = super().forward(x)
            out = out if plus is None else plus + out
            return F.relu(out) if relu else out
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        weight, bias = self._weights_for(x)
        how = (self.padding, self.stride, self.dilation, self.groups)
        convolve = torch.ops.mkldnn._convolution_pointwise
        if plus is None:
            after = "relu" if relu else "none"
            return convolve(x, weight, bias, *how, after, [], "")  # type: ignore[no-any-return]
        plus = plus.to(dtype).contiguous(memory_format=torch.channels_last)
        last = "relu" if relu else None
        return convolve.binary(  # type: ignore[no-any-return]
            x, plus, weight, bias, *how, "add", None, last, [], None
        )

    def _weights_for(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights and bias laid out for pictures of a shape and type, made when first wanted."""
        # Training changes them in place. What is made in inference mode does not tell of changes.
        state = [
            (own.data_ptr(), 0 if own.is_inference() else own._version) for own in self.parameters()
        ]
        if self._laid_out[0] != state:
            self._laid_out = state, {}
        laid_out = self._laid_out[1]
        key = x.dtype, x.shape
        if key not in laid_out:
            weight = torch.ops.aten.mkldnn_reorder_conv2d_weight(
                self.weight.detach().to(x.dtype).contiguous().to_mkldnn(),
                self.padding,
                self.stride,
                self.dilation,
                self.groups,
                list(x.shape),
            )
            bias = None if self.bias is None else self.bias.detach().to(x.dtype)
            laid_out[key] = weight, bias
        return laid_out[key]


def _has_operators() -> bool:
    return (
        _X86
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.aten, "mkldnn_reorder_conv2d_weight")
    )
