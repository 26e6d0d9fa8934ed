"""From a PyTorch model to geo IR and back: capture by Dynamo or `torch.export`, one importer for both."""

from aatc.frontend.compiled import compile
from aatc.frontend.exporting import export

__all__ = ["compile", "export"]
