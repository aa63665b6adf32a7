"""Coverage-guided fuzzing of the packet reader with atheris: part of `make fuzz`.

    python -m tests.fuzz.guided [libFuzzer's options: -runs=N -max_total_time=SECONDS]

Atheris watches which lines of the codec a packet reaches and keeps those that reach new ones. Every
input is signed again and its lengths mended, or nothing behind them would ever be reached. Whatever
is raised beside PacketError ends the run; libFuzzer then writes the input to a file and says where.
It also ends the process, so the folder of the tiny base stays in the system's temporary place.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["solar.codec"]):
    from solar.codec import packet
    from solar.codec.container import CHECKSUM, PacketError
    from solar.weights.matrices import open_matrices

from .mutate import mend, sign
from .seeds import PACKETS, finder, frames, usual, write_base


def main() -> None:
    warnings.simplefilter("error", RuntimeWarning)
    folder = Path(tempfile.mkdtemp(prefix="solar-guided-"))
    weights = open_matrices(str(write_base(folder / "base")))
    names, base = usual(weights), dict(weights)
    given = {"usual_names": names, "cache": folder / "cache", "frames": finder(frames(base))}

    def read(data: bytes) -> None:
        if len(data) < CHECKSUM:
            return
        signed = sign(mend(data))
        try:
            packet.inspect(signed)
            packet.decode(signed, base, **given)
        except PacketError:
            pass

    for path in sorted(PACKETS.glob("*.solar")):  # what they load and compile is not watched
        packet.decode(path.read_bytes(), base, **given)
    corpus = folder / "corpus"
    corpus.mkdir()
    atheris.Setup([*sys.argv, "-max_len=8192", "-timeout=30", "-rss_limit_mb=4096",
                   str(corpus), str(PACKETS)], read)  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    main()
