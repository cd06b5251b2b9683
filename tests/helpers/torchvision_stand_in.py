"""torchvision's models, also beside a build of torch for which its compiled operators are not made.

PyPI's torchvision is compiled for PyPI's torch. Beside a CPU build of torch it fails to import in its module
_meta_registrations, which declares operators of detection that no classifier uses: an empty module takes its place.
torchvision is found in this Python environment or in the folder FEDKD_TORCHVISION.

`torchvision_stand_in:NAME` is the object NAME of torchvision.models, unchanged, as a dotted path for any process.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

HOW = "torchvision is not installed: pip install --no-deps --target DIR torchvision, then set FEDKD_TORCHVISION=DIR"

if folder := os.environ.get("FEDKD_TORCHVISION"):
    sys.path.append(folder)
available = find_spec("torchvision") is not None
if available and torch.version.cuda is None:
    sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))


def __getattr__(name: str) -> Any:
    if name.startswith("__") or not available:
        raise AttributeError(name)
    from torchvision import models

    return getattr(models, name)
