"""A seeded campaign of mutated packets against the reader: `make fuzz`.

    python -m tests.fuzz.campaign [--mutants N] [--seed S] [--only NUMBER] [--keep FOLDER]

Every mutation is read twice, with the checksum left alone and signed again as a hostile sender
would, through `packet.inspect` and `packet.decode`; every tenth also as a file through `api.verify`
and `api.expand`. What must hold, or the exit status is 1:

- nothing but PacketError is ever raised, warnings of NumPy included;
- what keeps its old checksum never decodes to other weights, and neither does a payload of SOLAR or
  activation that was signed again (a signed baseline or head is another valid packet: these are
  counted apart);
- memory over that of an intact packet stays below 200 MB, and no mutant takes more than 20 s of
  processor time;
- `verify` and `expand` say the same, and `expand` leaves the two files of an adapter or nothing.
"""

import argparse
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from solar import api
from solar.codec import packet
from solar.codec.container import METHODS, PacketError
from solar.codec.frame_file import FramesFile
from solar.weights.matrices import open_matrices

from .mutate import mutant, sign
from .seeds import Seed, finder, frames, load, usual, write_base, write_frames

MUTANTS, EVERY = 12000, 10
SAME = 1e-5  # relative: what rounding of a basis may change
MOST_MB, MOST_SECONDS = 200, 20
WRITTEN = ["adapter_config.json", "adapter_model.safetensors"]


class Bench(NamedTuple):
    """What mutants are read against: the base, its frames, and the seeds with their updates as
    matrices."""

    folder: Path
    base: Path
    frames: Path
    weights: dict[str, np.ndarray]
    seen: FramesFile
    names: tuple[str, ...]
    seeds: dict[str, Seed]
    updates: dict[str, dict[str, np.ndarray]]


class Outcome(NamedTuple):
    """kind: refused, same, other or fault; text: the message, what differs, or the traceback;
    seconds of processor time, whatever else the machine does."""

    kind: str
    text: str
    seconds: float
    megabytes: float


def bench(folder: Path) -> Bench:
    base = write_base(folder / "base")
    weights = open_matrices(str(base))
    names, held = usual(weights), dict(weights)
    seeds = load(held, names, folder / "cache")
    updates = {name: _products(seed.factors) for name, seed in seeds.items()}
    own = write_frames(folder / "base.frames", held)
    return Bench(folder, base, own, held, frames(held), names, seeds, updates)


def _products(factors) -> dict[str, np.ndarray]:
    return {k: f.left.astype(np.float64) @ f.right.astype(np.float64).T for k, f in factors.items()}


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux: the peak is then that of the whole campaign so far
        pass


def _memory(field: str) -> float:
    """A figure of this process in MB: VmRSS now, VmHWM at its peak since the last reset."""
    try:
        found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _differs(own: Bench, name: str, found: dict[str, np.ndarray], heads: dict) -> str:
    """What is other than in the seed `name`: "" or update, heads, or both."""
    truth, parts = own.updates[name], []
    # A layer with an update of zeros is as good as one that is not listed.
    size = np.sqrt(sum((x**2).sum() for x in truth.values()))
    both = truth.keys() | found.keys()
    away = np.sqrt(sum(((truth.get(k, 0) - found.get(k, 0)) ** 2).sum() for k in both))
    if not away <= SAME * size:
        parts.append("update")
    true = own.seeds[name].heads
    if list(true) != list(heads) or any(not np.array_equal(true[k], heads[k]) for k in true):
        parts.append("heads")
    return " and ".join(parts)


def decode(own: Bench, data: bytes) -> packet.Decoded:
    """What the packet holds, by the base and frames of the bench. Raises PacketError."""
    return packet.decode(
        data,
        own.weights,
        usual_names=own.names,
        cache=own.folder / "cache",
        frames=finder(own.seen),
    )


def read_in_memory(own: Bench, data: bytes) -> str:
    """What the mutant differs in from the seed that it is closest to, "" where it is the same.
    Raises PacketError."""
    packet.inspect(data)
    decoded = decode(own, data)
    found = _products(decoded.factors)
    return min((_differs(own, name, found, decoded.heads) for name in own.seeds), key=len)


def read_as_file(own: Bench, data: bytes) -> None:
    """`verify` and `expand` agree, and `expand` leaves an adapter or nothing. Raises PacketError,
    AssertionError where that is not so."""
    folder = own.folder / "expand"
    folder.mkdir(exist_ok=True)
    file, out = folder / "mutant.solar", folder / "adapter"
    file.write_bytes(data)
    said, base = [], str(own.base)
    given = {"frames": own.frames}
    for verb in (
        lambda: api.verify(file, base, **given),
        lambda: api.expand(file, base, out, **given),
    ):
        try:
            verb()
            said.append(None)
        except PacketError as error:
            said.append(error)
    assert (said[0] is None) == (said[1] is None), f"verify and expand disagree: {said}"
    assert said[1] is None or str(said[0]) == str(said[1])
    left = sorted(p.name for p in folder.iterdir())
    if said[1] is not None:
        assert left == ["mutant.solar"], f"refused, yet there is {left}"
        raise said[1]
    assert left == ["adapter", "mutant.solar"], f"beside the adapter there is {left}"
    assert sorted(p.name for p in out.iterdir()) == WRITTEN
    for path in out.iterdir():
        path.unlink()
    out.rmdir()


def measured(read: Callable[[], str]) -> Outcome:
    """What becomes of a packet: read() returns what differs, "" where nothing does."""
    _reset_peak()
    before, start = _memory("VmRSS"), time.process_time()
    try:
        text = read()
        kind = "other" if text else "same"
    except PacketError as error:
        kind, text = "refused", str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # Rust's panics are no Exception
        kind, text = "fault", traceback.format_exc()
    return Outcome(kind, text, time.process_time() - start, _memory("VmHWM") - before)


def judge(own: Bench, data: bytes, as_file: bool) -> Outcome:
    """How one mutant is read."""
    kind, text, seconds, megabytes = measured(lambda: read_in_memory(own, data))
    if as_file and kind != "fault":
        try:
            read_as_file(own, data)
        except PacketError as error:
            # What only PEFT minds, such as a head without a module, is refused here alone.
            if kind == "refused" and str(error) != text:
                kind, text = "fault", f"decode says {text}; expand says {error}"
        except KeyboardInterrupt:
            raise
        except BaseException:
            kind, text = "fault", traceback.format_exc()
        else:
            if kind == "refused":
                kind, text = "fault", f"decode says {text}; expand takes it"
    return Outcome(kind, text, seconds, megabytes)


def family(message: str) -> str:
    """A message without its numbers and names."""
    text = re.sub(r"[0-9a-f]{32}", "HASH", message.split("; ")[0])
    text = re.sub(r"(head|layer) \S+ (holds|is|of|exceeds)", r"\1 NAME \2", text)
    text = re.sub(r"\(.*\)|-?\d[\d,.e+-]*|\bnan\b|-?\binf\b", "#", text)
    return text if len(text) < 90 else text[:87] + "..."


def is_allowed(method: str, signed: bool, text: str) -> bool:
    """Whether a packet may decode to something else: only if signed again, and then what no basis
    checksum covers, heads and baselines."""
    return signed and (method not in ("solar", "activation") or text == "heads")


def run(
    own: Bench, mutants: int, seed: int, *, every: int = EVERY, only: int | None = None,
    keep: Path | None = None, say=print,
) -> list[str]:  # fmt: skip
    """Runs a campaign of `mutants` packets, prints its counts, and returns the rules broken."""
    packets = {name: s.data for name, s in own.seeds.items()}
    broken: list[str] = []
    counts, families, others = Counter(), Counter(), Counter()
    slowest, largest = (0.0, ""), (0.0, "")
    for name, data in packets.items():  # twice: what is loaded or compiled once is not counted
        judge(own, data, True)
        found = judge(own, data, True)
        assert found.kind == "same", f"seed {name} is not read: {found.text}"
        largest = max(largest, (found.megabytes, name))
    intact, files, start = largest[0], 0, time.perf_counter()
    numbers = range(mutants // 2) if only is None else [only]
    largest = (0.0, "")
    for number in numbers:
        kind, name, what, unsigned = mutant(seed, number, packets)
        for signed in (False, True):
            data = sign(unsigned) if signed else unsigned
            if data in packets.values():  # signing has mended what was altered
                continue
            as_file = number % every == 0
            files += as_file
            found = judge(own, data, as_file)
            label = f"{number} ({kind} of {name}: {what}{', signed' if signed else ''})"
            counts[kind, signed, found.kind] += 1
            families[family(found.text)] += found.kind == "refused"
            slowest = max(slowest, (found.seconds, label))
            largest = max(largest, (found.megabytes - intact, label))
            method = METHODS[data[5] % len(METHODS)] if len(data) > 5 else "none"
            if found.kind == "other":
                others[method, found.text, kind if found.text == "update" else what] += 1
            if found.kind == "fault":
                broken.append(f"mutant {label}: {found.text}")
            elif found.kind == "other" and not is_allowed(method, signed, found.text):
                broken.append(f"mutant {label} decodes to another {found.text}")
            if found.seconds > MOST_SECONDS or found.megabytes - intact > MOST_MB:
                broken.append(
                    f"mutant {label} took {found.seconds:.1f} s, {found.megabytes:.0f} MB"
                )
            if keep and broken and broken[-1].startswith(f"mutant {label}"):
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{number}{'s' if signed else 'u'}.solar").write_bytes(data)
    _report(counts, families, others, say)
    say(f"{files} of them as files through api.verify and api.expand")
    say(f"slowest {slowest[0]:.2f} s: {slowest[1]}")
    say(f"most memory over an intact packet ({intact:.1f} MB) {largest[0]:.1f} MB: {largest[1]}")
    say(f"{time.perf_counter() - start:.0f} s; {len(broken)} rules broken")
    return broken


def _report(counts: Counter, families: Counter, others: Counter, say) -> None:
    kinds = list(dict.fromkeys(kind for kind, _, _ in counts))
    ends = ("refused", "same", "other", "fault")
    say(f"{'mutation':<12}" + "".join(f"{end:>9}{'signed':>9}" for end in ends))
    for name, own in [(kind, [kind]) for kind in kinds] + [("all", kinds)]:
        row = [sum(counts[k, s, end] for k in own) for end in ends for s in (False, True)]
        say(f"{name:<12}" + "".join(f"{n:>9}" for n in row))
    say(f"{counts.total()} packets")
    say("refused, by message:")
    for text, count in families.most_common():
        if count:
            say(f"{count:>7}  {text}")
    if others:
        say("decoded to something else, by method, what differs, and mutation:")
        for key, count in others.most_common(40):
            say(f"{count:>7}  {', '.join(key)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=MUTANTS, help="how many packets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one mutation, by its number")
    parser.add_argument("--keep", type=Path, help="folder for mutants that break a rule")
    given = parser.parse_args()
    warnings.simplefilter("error", RuntimeWarning)
    with tempfile.TemporaryDirectory() as folder:
        own = bench(Path(folder))
        broken = run(own, given.mutants, given.seed, only=given.only, keep=given.keep)
    for text in broken[:20]:
        print(text, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
