"""What tests ask of each of vLLM's worker processes. Stands alone: it needs vLLM, not slideconvert."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# Stock kernels for CPUs with AMX refuse INT8 with float32 and round activations of W4A16: with these, all CPUs agree.
torch.cpu._is_amx_tile_supported = lambda: False

QMAX = {"torch.int8": 127.0, "torch.float8_e4m3fn": 448.0}


class Worker:
    """vLLM mixes this into its workers (worker_extension_cls), with which it shares `model_runner` and `rank`."""

    def linears(self) -> dict:
        from vllm.model_executor.layers.linear import LinearBase

        modules = self.model_runner.model.named_modules()
        # With LoRA, the linear is what its adapters are added to.
        return {name.removesuffix(".base_layer"): module for name, module in modules if isinstance(module, LinearBase)}

    def describe(self) -> dict:
        """By linear: who runs it, and every tensor that it holds."""
        told = {}
        for name, module in self.linears().items():
            method = module.quant_method
            backend = getattr(method, "backend", None)
            tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            told[name] = {
                "method": type(method).__name__,
                "backend": backend.name if backend else None,
                "tensors": {key: [str(value.dtype), list(value.shape)] for key, value in tensors.items()},
            }
        ours = sorted(name for name in sys.modules if name.startswith("slideconvert"))
        hashed = self.vllm_config.additional_config.get("slidesparse")  # part of the name of what is compiled
        return {"pid": os.getpid(), "modules": ours, "linears": told, "hashed": hashed}

    def capture(self) -> None:
        """From now on, keep the first input of every linear."""
        for module in self.linears().values():

            def apply(layer, x, bias=None, original=module.quant_method.apply):
                if not hasattr(layer, "captured"):
                    layer.captured = x.clone()
                return original(layer, x, bias)

            module.quant_method.apply = apply

    def save_captured(self, dtypes: dict, out: str) -> None:
        """dtypes: by linear, the dtype of its codes ("" for none)."""
        kept = {}
        for name, module in self.linears().items():
            kept[name] = snapped(module.captured, dtypes[name])
        save_file(kept, Path(out) / f"inputs{self.rank}.safetensors")

    def replay(self, inputs: str, out: str) -> None:
        """Give linears the inputs that some run has captured, and keep what comes out. One linear may have several
        inputs: NAME@1, NAME@2 …"""
        captured, kept = load_file(Path(inputs) / f"inputs{self.rank}.safetensors"), {}
        with torch.inference_mode():
            linears = self.linears()
            for name, x in captured.items():
                module = linears[name.partition("@")[0]]
                # As in a row-parallel linear's forward: only one rank adds its bias.
                bias = None if self.rank and hasattr(module, "input_is_parallel") else module.bias
                kept[name] = module.quant_method.apply(module, x.to(self.device), bias).contiguous()
        save_file(kept, Path(out) / f"outputs{self.rank}.safetensors")


def snapped(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """x [M, K] moved onto codes times a power of two, the largest code in each row, so that nothing is left to round.

    Quantizers divide by the scale or multiply by its reciprocal: near a tie they disagree, here they cannot.
    """
    if not dtype:
        return x
    qmax = QMAX[dtype]
    scale = (x.float().abs().amax(1, keepdim=True) / qmax).clamp(min=1e-30).log2().ceil().exp2()
    codes = (x.float() / scale).clamp(-qmax, qmax)
    codes = codes.round() if dtype == "torch.int8" else codes.to(torch.float8_e4m3fn).float()
    codes[:, 0] = qmax
    return (codes * scale).to(x.dtype)
