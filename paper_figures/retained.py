"""The share of LoRA's gain that a file keeps, over its bytes: a panel per base, task and adapter.

    python -m paper_figures.retained [CSV ...] [--out FOLDER] [--markdown]

Without a CSV all of data/*_budgets*.csv, and from the other files there the paper's form of the
same adapters. Bytes are those of the update: trained heads, which every file of a panel carries
alike, are left out. Error bars are the standard deviation over seeds.
--markdown prints, for every file of `compact`, what the others keep in as many bytes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_figures import program, style
from paper_figures import rows as results
from paper_figures.accuracy_vs_bytes import on_curve, plot_line, scale_bytes, styled

ACROSS = 2
LEAST, MOST = -0.25, 1.4  # the axis; a file that harms more has no marker
NEAR = 0.6  # of the bytes of a file that one has to have that stands beside it in the table
EPS = 0.1  # perturbation of the paper's form that is shown
RUN = ("base", "task", "adapter", "group", "seed")  # what tells one run from another
SKIPPED = ("float32",)  # four bytes a weight would push what matters to the left edge


def paper_of(
    rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of the paper's form among `others` that code the very adapters of `rows`, as rows of the
    same panel; once each, and none that `rows` has."""
    own, theirs = _adapters(rows), _adapters(others)
    mine = {adapter: run for run, adapter in own.items()}
    known = {(own.get(_run(row)), row["N"]) for row in rows if _is_shown(row)}
    found: dict[tuple, dict[str, Any]] = {}
    for row in others:
        adapter = theirs.get(_run(row))
        if _is_shown(row) and adapter in mine and (adapter, row["N"]) not in known:
            panel = dict(zip(RUN, mine[adapter], strict=True))
            found.setdefault((adapter, row["N"]), row | panel)
    return list(found.values())


def _is_shown(row: dict[str, Any]) -> bool:
    return results.on_grid(row) and row["eps"] == EPS


def _run(row: dict[str, Any]) -> tuple:
    return tuple(row.get(k) for k in RUN)


def _adapters(rows: Sequence[dict[str, Any]]) -> dict[tuple, str]:
    """The trained adapter of every run, by the folder that the cache has it in: its identity."""
    return {
        _run(row): row["packet"].rpartition("/")[2]
        for row in rows
        if row.get("codec") == "float32" and row.get("packet")
    }


def panels_of(rows: Sequence[dict[str, Any]]) -> list[results.Panel]:
    """Panels by title, whose points have the bytes of the update. Raises ValueError where there is
    none."""
    panels = results.panels(
        rows, lambda row: on_curve(row) and row.get("retained") is not None
        and row.get("codec") not in SKIPPED,
    )  # fmt: skip
    if not panels:
        raise ValueError("no row has both bytes and a retained gain: collect runs of compare")
    for panel in panels:
        for point in panel.points:
            point["bytes"] = point["without_head"] or point["bytes"]
    return sorted(panels, key=lambda panel: panel.title)  # adapters of a task side by side


def share(point: dict[str, Any] | None) -> str:
    """What a file keeps, in per cent, with the standard deviation where there are several seeds."""
    if point is None:
        return "-"
    spread = point.get("retained_std")
    text = f"{100 * point['retained']:.0f}"
    return text + ("" if spread is None else f" ± {100 * spread:.0f}")


def float32_bytes(panel: results.Panel) -> float | None:
    """Bytes of the LoRA file of a panel, less those of a trained head; None where it has no row."""
    # Heads are float16 in files of ours, float32 in LoRA's.
    heads = max((row.get("heads") or 0 for row in panel.rows), default=0)
    found = (r["bytes"] - 2 * heads for r in panel.rows if r.get("codec") == "float32")
    return next(found, None)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with a line for every file of `compact`: what it keeps, what the largest files keep
    that were trained through it, that of `weights`, and the best of the others, of those that take
    no more than a hundredth above. Bytes are told where they are clearly fewer; the ratio leaves
    heads out on both sides."""
    names = [*results.TRAINED, "weights"]
    lines = [f"| base and task | bytes | ratio | compact | {' | '.join(names)} | best other |",
             "| --- | ---: | ---: |" + " ---: |" * (1 + len(names)) + " --- |"]  # fmt: skip

    def fitting(small: list[dict[str, Any]], codec: str, size: float) -> str:
        best = next((p for p in reversed(small) if p["codec"] == codec), None)
        if best is None or best["bytes"] < NEAR * size:
            return "-"
        return share(best) + (f" ({best['bytes']:,.0f})" if best["bytes"] < 0.96 * size else "")

    for panel in panels_of(rows):
        ordered = sorted(panel.points, key=lambda point: point["bytes"])
        whole = float32_bytes(panel)
        for own in (point for point in ordered if point["codec"] == "compact"):
            small = [p for p in ordered if p["bytes"] <= 1.01 * own["bytes"]]
            others = [p for p in small if p["codec"] not in ("compact", *names)]
            best = max(others, key=lambda point: point["retained"], default=None)
            named = "" if best is None else f" ({best['label']}, {best['bytes']:,.0f})"
            cells = [
                panel.title,
                f"{own['bytes']:,.0f}",
                "-" if whole is None else f"{whole / own['bytes']:,.0f}",
                share(own),
                *(fitting(small, name, own["bytes"]) for name in names),
                share(best) + named,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], folder: str | Path, name: str = "retained") -> list[Path]:
    """Draw tidy `rows` to `folder`/`name`.png and .pdf. Raises ValueError where no row has bytes
    and a retained gain."""
    panels = panels_of(rows)
    looks = styled(results.lines([point for panel in panels for point in panel.points]))
    columns = min(ACROSS, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = style.figure(
        lines, columns, 2 * style.COLUMN, 0.5 + 1.9 * lines, sharey=True
    )  # fmt: skip
    legend: dict[str, Any] = {}
    for i, (place, panel) in enumerate(zip(axes.flat, panels, strict=False)):
        for label, (look, line) in looks.items():
            here = [point for point in line if any(point is own for own in panel.points)]
            inside = [p for p in here if p["retained"] > LEAST]
            if inside:
                if all(results.on_grid(p) and p["eps"] == EPS for p in inside):
                    label = "the paper's form"
                label = label.replace("SOLAR, top", "the paper's form, top")
                legend[label] = plot_line(place, inside, "retained", look)
        scale_bytes(place, panel.points)
        place.axhline(1, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
        place.set_ylim(LEAST, MOST)
        place.set_title(panel.title)
        place.set_ylabel("retained gain" if i % columns == 0 else "")
        place.set_xlabel("bytes of the update" if i + columns >= len(panels) else "")
    for place in axes.flat[len(panels) :]:
        place.set_visible(False)
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=4, handlelength=2.6,
        columnspacing=1.2,
    )  # fmt: skip
    return style.save(figure, folder, name)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("csv", nargs="*")
    parser.add_argument("--out", default=program.HERE, help="folder for the files")
    parser.add_argument("--markdown", action="store_true", help="print a table, draw nothing")
    given = parser.parse_args(arguments)
    sources = given.csv or sorted(program.DATA.glob("*_budgets*.csv"))
    others = [] if given.csv else sorted(set(program.DATA.glob("*.csv")) - set(sources))
    with program.mistakes():
        rows = [row for source in sources for row in results.read(source)]
        rows += paper_of(rows, [row for source in others for row in results.read(source)])
        found = [markdown(rows)] if given.markdown else draw(rows, given.out)
    print("\n".join(map(str, found)))


if __name__ == "__main__":
    main()
