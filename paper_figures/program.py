"""The command line that every figure has: a CSV in, the paths of a PNG and a PDF out."""

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from paper_figures import rows

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"


@contextmanager
def mistakes() -> Iterator[None]:
    """Rows that cannot be drawn (ValueError, or TypeError where a number is a word) and files that
    cannot be written are one line on stderr and exit status 2."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def command(
    draw: Callable[..., list[Path]],
    csv: str,
    doc: str,
    *,
    named_after_csv: bool = False,
    **options: str,
) -> Callable[[Sequence[str] | None], None]:
    """A `main` that draws the committed CSV named `csv`, or the one given, with `draw(rows, folder,
    **options)`.

    named_after_csv: `draw` also takes the `name` of the files, which is the CSV's. options: name of
    an argument of `draw` with a default -> its help. A CSV that cannot be drawn is one line on
    stderr and exit status 2.
    """

    def main(arguments: Sequence[str] | None = None) -> None:
        parser = argparse.ArgumentParser(description=doc.partition("\n\n")[0])
        parser.add_argument("csv", nargs="?", default=DATA / csv)
        parser.add_argument("--out", default=HERE, help="folder for the files")
        for name, text in options.items():
            usual = inspect.signature(draw).parameters[name].default
            parser.add_argument(f"--{name}", default=usual, type=type(usual), help=text)
        given = vars(parser.parse_args(arguments))
        source, folder = given.pop("csv"), given.pop("out")
        if named_after_csv:
            given["name"] = Path(source).stem
        with mistakes():
            paths = draw(rows.read(source), folder, **given)
        print("\n".join(map(str, paths)))

    return main
