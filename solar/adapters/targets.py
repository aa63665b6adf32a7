"""Which projections an adapter changes, by PEFT's rules, so that one config means the same in both
programs.

A list matches a whole name or a suffix after a dot; a string is a regular expression for the whole
name, or ``all-linear`` (every projection but the output head). Rank and alpha patterns match the
end of a name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from solar.errors import SolarError

DEFAULTS = {"llama": ("q_proj", "v_proj"), "gpt2": ("c_attn",), "vit": ("q_proj", "v_proj")}
OUTPUT_HEADS = ("lm_head", "classifier")
# What users of other families or of older transformers write, for the advice in the error.
OLD_VIT = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
ALSO_CALLED = {**OLD_VIT, "c_attn": "q_proj, v_proj"}


def select(
    linears: Iterable[str],
    targets: Sequence[str] | str,
    exclude: Sequence[str] = (),
) -> tuple[str, ...]:
    """Names of the projections that ``targets`` picks, sorted; ``exclude`` lists fully trained
    modules.

    Raises SolarError where nothing matches, one entry of a list matches nothing, or a regular
    expression is none.
    """
    names = sorted(linears)
    free = [n for n in names if not any(within(n, module) for module in exclude)]
    if isinstance(targets, str):
        if targets == "all-linear":
            chosen = [n for n in free if n.rsplit(".", 1)[-1] not in OUTPUT_HEADS]
        else:
            chosen = [n for n in free if matched(targets, n)]
        unmatched = [] if chosen else [targets]
    else:
        chosen = [n for n in free if any(n == t or n.endswith("." + t) for t in targets)]
        unmatched = [t for t in targets if not any(n == t or n.endswith("." + t) for n in free)]
        if not targets:
            raise SolarError(
                "target_modules is empty; name the projections to adapt, such as q_proj"
            )
    if unmatched:
        kinds = sorted({n.rsplit(".", 1)[-1] for n in names})
        hints = [f"{t!r} is called {ALSO_CALLED[t]} here" for t in unmatched if t in ALSO_CALLED]
        advice = "; ".join(hints) + "; " if hints and "q_proj" in kinds else ""
        raise SolarError(
            f"no module matches {', '.join(map(repr, unmatched))}; "
            f"{advice}this model has {', '.join(kinds)}"
        )
    return tuple(chosen)


def usual_names(family: str, names: Iterable[str]) -> tuple[str, ...]:
    """The projections among ``names`` that a family's adapters usually change, sorted."""
    return select(names, DEFAULTS[family])


def matched(pattern: str, name: str) -> bool:
    """Whether a regular expression is the whole of `name`. Raises SolarError where it is none."""
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise SolarError(
            f"{pattern!r} is no regular expression ({error}); name modules in a list, or write "
            "what comes before a name as .*"
        ) from error


def within(name: str, module: str) -> bool:
    """Whether ``name`` is the module called ``module`` (its whole name or its last parts) or lies
    in it.
    """
    return re.match(rf"(^|.*\.){re.escape(module)}($|\..*)", name) is not None


def by_pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    """The first pattern's value that matches the end of ``name``, as PEFT's rank_pattern,
    alpha_pattern. Raises SolarError for a pattern that is no regular expression.
    """
    for pattern, value in patterns.items():
        if matched(at_end(pattern), name):
            return value
    return default


def at_end(pattern: str) -> str:
    """The regular expression of a name that ends in what `pattern` matches, as PEFT builds it."""
    return rf"(.*\.)?({pattern})$"
