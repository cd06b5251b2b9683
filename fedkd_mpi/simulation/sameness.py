"""Checks that all processes were started with the same command, configuration, packages and data."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi import __version__
from fedkd_mpi.communication.agreement import DIGEST_BYTES, require_same
from fedkd_mpi.communication.shared_memory import flat_bytes

if TYPE_CHECKING:
    from fedkd_mpi.communication.world import World
    from fedkd_mpi.config.schema import Config

LIBRARIES = ("torch", "numpy", "h5py", "mpi4py")
OF_NETWORKS = {"torchvision": "torchvision", "hf": "transformers", "bert": "transformers"}  # by model family


def require_same_data(world: World, arrays: Mapping[str, np.ndarray], meta: Any) -> None:
    """Raise the same UserError on every process if a node has read other data than the first node. Collective.

    `arrays` and `meta` are the data of the node. Only node leaders compute digests, and only with several nodes.
    """
    nodes = world.allgather(np.array([world.is_node_leader])).sum()
    if nodes > 1:
        own = contents(arrays, meta) if world.is_node_leader else None
        require_same(
            world, world.broadcast_on_node(own), "every node must read the same files (data.root, $FEDKD_DATA)"
        )


def start(config: Config, options: Mapping[str, Any], mode: str) -> dict[str, str]:
    """Return the texts, by key, of everything that this process was started with.

    `mode` is the kind of run (new or resumed), `options` are those of the command line. The others are the
    configuration, this package, the user's own parts, files of weights, and the libraries that affect results.
    """
    values = flat(config.model_dump(mode="json"))
    texts = {"mode": mode, **{key: json.dumps(value) for key, value in values.items()}}
    texts |= {f"--{name.replace('_', '-')}": str(value) for name, value in options.items()}
    texts |= {"fedkd_mpi": f"{__version__}, sources {digest_of(Path(__file__).parents[1])}"}
    for value in values.values():
        if isinstance(value, str) and (file := own_part(value)):
            texts[f"source of {value}"] = digest_of(file)
    texts["Python"] = platform.python_version()
    networks = [config.student, *config.architectures]
    for name in (*LIBRARIES, *(OF_NETWORKS[network.name] for network in networks if network.name in OF_NETWORKS)):
        texts[name] = _version(name)
    weights = [network.options().get("weights") for network in networks if network.name == "torchvision"]
    for path in filter(None, weights):
        file = Path(path).expanduser()
        texts[f"file {path}"] = digest_of(file) if file.is_file() else "missing"
    return texts


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:  # which is told when it is imported
        return "not installed"


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists by dotted key."""
    if not isinstance(tree, dict | list) or not tree:
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        name: leaf
        for key, branch in items
        for name, leaf in flat(branch, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def own_part(value: str) -> Path | None:
    """Return the file of the module in a part's dotted path, package.module:Name; None for other texts."""
    module, colon, name = value.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return None
    package, *rest = module.split(".")
    found = find_spec(package)  # imports nothing; find_spec of a submodule would import its package
    if not found or not found.origin:
        return None
    stem = Path(found.origin).parent.joinpath(*rest) if rest else Path(found.origin).with_suffix("")
    return next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()), None)


def digest_of(path: Path) -> str:
    """Return a digest of a file, or of all Python sources below a folder."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for file in files:
        content = file.read_bytes()
        whole.update(f"{file.relative_to(path)} {len(content)} ".encode() + content)
    return whole.hexdigest()


def contents(arrays: Mapping[str, np.ndarray], meta: Any) -> dict[str, str]:
    """Return a text for each array (type, shape and digest) and one for the metadata."""
    texts = {}
    for name, array in sorted(arrays.items()):
        digest = hashlib.blake2b(flat_bytes(array).data, digest_size=DIGEST_BYTES).hexdigest()
        texts[f"the data's {name}"] = f"{array.dtype} {list(array.shape)} {digest}"
    return texts | {"the data's meta": json.dumps(meta, sort_keys=True)}
