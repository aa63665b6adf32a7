"""What kind of module a layer is, by its path."""

import re
from collections.abc import Iterable


def kinds(names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Path of a layer -> number of its block, and the end of the path: as few parts of it as tell
    the layers of one block apart, which of GPT-2's two `c_proj` makes `attn.c_proj` and
    `mlp.c_proj`. Raises ValueError for a path without a number."""
    paths = {name: re.fullmatch(r"(?:(.*?)\.)?(\d+)\.(.+)", name) for name in names}
    if strange := [name for name, path in paths.items() if path is None]:
        raise ValueError(f"{strange[0]} is in no numbered block")
    ends = {name: path[3].split(".") for name, path in paths.items()}
    for long in range(1, max(map(len, ends.values()), default=0) + 1):
        found = {name: ".".join(end[-long:]) for name, end in ends.items()}
        if len({(*paths[name].group(1, 2), end) for name, end in found.items()}) == len(paths):
            break
    return {name: (int(paths[name][2]), found[name]) for name in paths}
