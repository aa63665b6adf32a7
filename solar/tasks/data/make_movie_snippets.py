"""Make movie_snippets.tsv.xz from the vaderSentiment 3.3.2 source distribution.

    python -m solar.tasks.data.make_movie_snippets

One line per sentence: the mean of 20 human ratings (-4 to 4), a tab, the sentence. Sentences rated
within 0.5 of neutral are left out, so that the sign of the rating is a label. The order is the
source's; splitting is the task's business.
"""

import lzma
import tarfile
from pathlib import Path

from solar.packages import fetch, find_one

RATED = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
LEAST_RATING = 0.5


def make(target: Path) -> Path:
    """Write the packed table to `target` and return it."""
    package = fetch("pip:vaderSentiment==3.3.2")
    with tarfile.open(find_one(package, "*/additional_resources/hutto_ICWSM_2014.tar.gz")) as inner:
        lines = inner.extractfile(RATED).read().decode("utf-8").splitlines()
    kept = []
    for line in lines:
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= LEAST_RATING:
            kept.append(f"{float(rating):.3g}\t{' '.join(text.split())}\n")
    target.write_bytes(lzma.compress("".join(kept).encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{target.name}: {len(kept)} of {len(lines)} sentences, {target.stat().st_size} bytes")
    return target


if __name__ == "__main__":
    make(Path(__file__).with_name("movie_snippets.tsv.xz"))
