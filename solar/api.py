"""The verbs of `python -m solar` as functions: an adapter directory in, a `.solar` file out, and
back. Of the base only the adapted weights are read, one at a time; a model is built only to make
the frames of a base, once, and for calibration.
"""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from solar import packages
from solar.codec import container, packet
from solar.codec.container import PacketError, Watch, unwatched
from solar.codec.recipe import BUDGET, ENTROPY, MAX_SIZE, Recipe, Setting
from solar.errors import SolarError
from solar.files import refuse_to_replace, replace_whole

PRESETS = ("paper", "weights", "compact")
DEFAULT_SHARE = 64  # without a budget the update may have this fraction of the adapter's file
PAPER_EPS = 0.1
# Nearly 1 is what keeps more of the gain on real adapters (docs/lab-notes.md). At 1 the leading
# components of all layers are worth alike, and a budget that has no room for all sends none.
RELATIVE = 0.98
OWN = "own"  # calibration that needs no data
EMPTY = 256  # bytes that a file without any update may need


def setting_for(preset: str, seed: int, embed_basis: bool) -> Setting:
    """The codec's setting of a preset that looks at weights alone.

    paper: perturbed leading singular vectors of the base, float16, N and K alike for all layers.
    weights: every side of every component entropy-coded at the rate it is worth, in a seeded
    orthogonal basis, which needs nothing of the base and is never embedded.
    """
    if preset == "paper":
        return Setting(Recipe("singular", 64, PAPER_EPS, seed=seed), embed=embed_basis)
    if preset != "weights":
        raise SolarError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    return Setting(
        Recipe("orthogonal", MAX_SIZE, seed=seed), keep=BUDGET, dtype=ENTROPY, relative=RELATIVE
    )


def compress(
    adapter: str | os.PathLike,
    base: str,
    out: str | os.PathLike,
    *,
    budget_bytes: int | None = None,
    preset: str | None = None,
    seed: int = 0,
    embed_basis: bool = False,
    head_dtype: str = "float16",
    frames: str | os.PathLike | None = None,
    calibration: str | os.PathLike | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Writes the adapter directory `adapter` to the file `out` in at most `budget_bytes`.

    adapter: what PEFT wrote (LoRA, rsLoRA, AdaLoRA, VeRA, LoHa) or a directory of two-dimensional
    updates. base: a model directory, a GGUF file, a hub id or pip:NAME==VERSION. budget_bytes:
    of the whole file, trained heads included; None gives the update a 64th of the adapter's file.
    preset: `paper`, `weights` (setting_for) or `compact`, the default: errors count as the base's
    own activations see them (codec/activation.py), by the frames file `frames`, by default the one
    in the cache, which is made first where there is none. calibration, of compact only: inputs
    without labels (channel.unlabelled), or the str `own` for what the base writes itself
    (own_inputs): the file is trained to answer them as the adapter does, and is not taken where the
    plain one does better on inputs held out. head_dtype: float16, float32 or int8.
    watch(iterable, length, what) may show progress.

    Returns the record of the encoding: `bytes` by part, `relative_error` and its `bound` over all
    layers, `slack`, the `worst` layer, every layer's figures, and `ratio` to the adapter's file.
    Raises SolarError on anything that does not fit, and writes nothing then.
    """
    from solar.adapters import directory, targets
    from solar.codec import activation
    from solar.codec.encode import encode
    from solar.codec.factors import canonical
    from solar.frame_store import for_base
    from solar.weights.matrices import open_matrices

    adapter, out, preset = Path(adapter), Path(out), preset or "compact"
    Recipe(seed=seed)  # refuses one out of range, also where nothing is drawn from it
    setting = None if preset == "compact" else setting_for(preset, seed, embed_basis)
    refuse_to_replace(out)
    if setting is not None and (calibration is not None or frames is not None):
        what = "frames are" if calibration is None else "calibration is"
        raise SolarError(f"preset {preset} looks at weights alone; {what} for compact")
    if embed_basis and preset != "paper":
        raise SolarError(f"preset {preset} has no basis to embed; only paper has")
    if calibration is not None and seed >= 2**63:
        raise SolarError(f"seed {seed} is too large for calibration; give one below 2^63")
    weights = open_matrices(base)
    read = directory.read_for(adapter, weights.family, weights.shapes, gains=weights.gains)
    size = sum(f.stat().st_size for f in adapter.glob("*.safetensors"))
    if budget_bytes is None:
        budget_bytes = size // DEFAULT_SHARE + _head_bytes(read.heads, head_dtype) + EMPTY
    common = {
        "budget_bytes": budget_bytes,
        "heads": read.heads,
        "head_dtype": head_dtype,
        "usual_names": targets.usual_names(weights.family, weights),
        "watch": watch,
    }
    factors = canonical(read.pairs)
    if calibration is not None:  # before anything is coded or run
        from solar.matching import check_heads

        check_heads(read, weights.family == "vit")
    if setting is None:
        known = container.identify(weights, factors, watch)
        found = for_base(frames, base, weights, known, watch)
        code = partial(activation.encode, base=weights, frames=found, known=known)
        coded = code(factors, **common)
        if calibration is not None:
            coded = _calibrated(coded, code, base, read, known, found, calibration, common, seed)
    else:
        cache = packages.cache_dir() / "bases"
        coded = encode(factors, weights, setting, cache=cache, **common)
    packet.write(out, coded.data)
    report = coded.report | {"file": str(out), "adapter_bytes": size}
    return report | {"budget_bytes": budget_bytes, "ratio": size / len(coded.data)}


def _calibrated(plain, code, base, read, known, frames, data, common, seed):
    """Of `plain` and what was trained to answer `data` as the adapter does, the file that does, on
    inputs that nothing was trained on."""
    from solar import channel
    from solar.codec.factors import canonical, relative_error
    from solar.moments import load_small
    from solar.weights.base import load

    classes = _labels(read.heads)
    if data == OWN:
        model = load_small(base, num_labels=classes)
        task = channel.own_inputs(model, channel.STEPS * channel.TOGETHER + channel.MEASURED, seed)
    else:
        model = load(base, num_labels=classes)
        task = channel.unlabelled(model, data)
    task, others = channel.parted(task, seed)
    start = channel.Start(read, known, frames, container.listed(known, common["usual_names"]))
    room = common["budget_bytes"] - _head_bytes(read.heads, common["head_dtype"])
    own, decided = channel.calibrated(model, start, task, room, seed)
    tuned = code(canonical(own.pairs), **common | {"heads": own.heads}, decided=decided)
    both = (plain.factors, read.heads), (tuned.factors, own.heads)
    before, after = channel.divergence(model, read, others, both)
    found = tuned if after < before else plain
    found.report["calibration"] = {
        "inputs": channel.count(task),
        "measured": channel.count(others),
        "divergence": [before, min(before, after)],
        # The figures of the encoding itself are those of what was coded.
        "relative_error": relative_error(canonical(read.pairs), found.factors),
    }
    return found


def _labels(heads: dict) -> int | None:
    """Classes of the classifier among trained heads, None where there is none."""
    found = [len(head) for name, head in heads.items() if name == "classifier.weight"]
    return found[0] if found else None


def _head_bytes(heads: dict, dtype: str) -> int:
    from solar.codec.heads import pack_heads

    return len(pack_heads(heads, dtype))


def _decode(file: str | os.PathLike, base: str, frames: str | os.PathLike | None, watch: Watch):
    """The decoded packet and the weights it fits."""
    from solar.adapters import targets
    from solar.frame_store import finder
    from solar.weights.matrices import open_matrices

    data = packet.read(file)
    packet.inspect(data)  # what is wrong with the file alone is said before the base is fetched
    weights = open_matrices(base)
    decoded = packet.decode(
        data,
        weights,
        usual_names=targets.usual_names(weights.family, weights),
        cache=packages.cache_dir() / "bases",
        frames=finder(frames),
        watch=watch,
    )
    for name in decoded.heads:
        # PEFT takes a head's module from its name, and an empty one for every module there is.
        module, _, parameter = name.rpartition(".")
        if not (module and parameter) or ".lora_" in name:
            raise PacketError(f"packet is altered: head {name} is not a parameter of a module")
    return decoded, weights


def expand(
    file: str | os.PathLike,
    base: str,
    out: str | os.PathLike,
    *,
    force: bool = False,
    frames: str | os.PathLike | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Writes a `.solar` file as a PEFT directory that `PeftModel.from_pretrained` loads.

    frames: the frames file that a `compact` file needs where the cache has it not. Returns the
    file's header. Raises PacketError where the file is damaged or made for another base, SolarError
    where `out` exists and `force` is not given; nothing is written then, and a directory that is
    replaced stays until the new one is whole.
    """
    from solar.adapters import peft_io
    from solar.adapters.adapter import Adapter

    out = Path(out)
    if out.exists() and not force:
        raise SolarError(f"{out} exists; give another name, or --force to replace it")
    decoded, weights = _decode(file, base, frames, watch)
    pairs = {name: (f.left, f.right.T, 1.0) for name, f in decoded.factors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    # Everything happens in a folder beside `out` that goes away in any case.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside:
        fresh, old = Path(beside) / "new", Path(beside) / "old"
        own = Adapter(pairs, decoded.heads)
        peft_io.write(fresh, own, weights.family, weights.source, gains=weights.gains)
        replace_whole(fresh, out, old)
    return decoded.header | {"directory": str(out)}


def inspect(file: str | os.PathLike) -> dict[str, Any]:
    """What a `.solar` file says of itself: recipe, layers and ranks, bytes by part. No base is
    needed and nothing is decoded. Raises PacketError."""
    return packet.inspect(packet.read(file)) | {"file": str(file)}


def verify(
    file: str | os.PathLike,
    base: str,
    *,
    frames: str | os.PathLike | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Decodes a `.solar` file and lets the result go: returns its header where `expand` would
    succeed. Raises PacketError where it would not."""
    decoded, _ = _decode(file, base, frames, watch)
    return decoded.header


def frames(
    base: str,
    out: str | os.PathLike,
    *,
    inputs: str | os.PathLike | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Measures the frames of a base (solar/moments.py), which `compact` codes in, and writes them
    to `out` and to the cache. Sender and receiver need the same file; it depends on the base alone.

    inputs: a text file with one a line or a folder of images, without labels, to measure on in
    place of what needs no data: files for models that see such inputs are smaller. Then nothing is
    put into the cache, and both ends name the file (`frames=`).
    Returns the hash that packets name it by, its bytes, how many `frames` it has (of inputs, which
    layers may share, and of outputs) for how many `layers`, and what it was measured on (`about`).
    Raises SolarError where the base cannot be run and where no inputs can be read.
    """
    from solar.codec import frame_file
    from solar.frame_store import made

    out = Path(out)
    refuse_to_replace(out)
    own = made(base, watch) if inputs is None else _frames_on(base, inputs, watch)
    frame_file.write(out, own)
    return {
        "file": str(out),
        "bytes": out.stat().st_size,
        "hash": own.hash.hex(),
        "layers": len(own.layers),
        "frames": len(own.frames),
        "about": own.about,
    }


def _frames_on(base: str, inputs: str | os.PathLike, watch: Watch):
    from solar import channel
    from solar.moments import frames_of, in_batches, load_small

    model = load_small(base)
    task = channel.unlabelled(model, inputs)
    about = {"inputs": "given", "n": channel.count(task), "of": task.identity}
    rows = dict(task.train)
    if "mask" in rows:  # without the token that ends a line, which is none of the input
        rows |= {"tokens": rows["tokens"][:, :-1], "mask": rows["mask"][:, 1:]}
    return frames_of(model, in_batches(rows), about=about, watch=watch)


def limit(adapter: str | os.PathLike, base: str | None = None) -> dict[str, Any]:
    """The rate-distortion limit of an adapter directory: `points`, (bytes, relative error) rising
    in bytes, below which no code that looks at weights alone can go (solar/codec/limit.py).

    base: of which the adapter is; asked for where layers share a factor that is wider than some of
    them (VeRA). Heads are not counted. Raises SolarError where the directory cannot be read.
    """
    from solar.adapters import directory
    from solar.codec.factors import canonical
    from solar.codec.limit import rate_distortion
    from solar.weights.matrices import open_matrices

    if base is not None:
        weights = open_matrices(base)
        read = directory.read_for(adapter, weights.family, weights.shapes, gains=weights.gains)
    else:
        read = directory.read(adapter)
        if read.wide:
            raise SolarError(
                f"layers of {adapter} share one factor, of which each takes what its inputs are; "
                "name the base of which they are layers"
            )
    points = rate_distortion(canonical(read.pairs))
    size = sum(f.stat().st_size for f in Path(adapter).glob("*.safetensors"))
    return {
        "adapter": str(adapter),
        "adapter_bytes": size,
        "layers": len(read.pairs),
        "points": [{"bytes": b, "relative_error": e} for b, e in points],
    }


__all__ = ["PRESETS", "PacketError", "compress", "expand", "frames", "inspect", "limit", "verify"]
