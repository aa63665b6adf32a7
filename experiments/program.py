"""How every Hydra program starts and ends: one wrapper around `hydra.main`.

Decides what a person sees when something goes wrong. A user's mistake (SolarError, an unknown key,
an option that does not exist, an override that does not parse) is one line on stderr and exit
status 2. Ctrl-C is one line that says how to go on, and exit status 130. Anything else is a bug and
keeps its whole traceback. In a sweep (`-m`) the other points are still computed, each failing job
leaves `error.txt` in its folder, and the exit status is 2 at the end; so it is with every launcher.
"""

import difflib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from solar.errors import SolarError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

# What a job itself may meet because of its configuration. Other OmegaConf errors inside a job are
# mistakes of the program.
_MISTAKES = (
    SolarError,
    MissingMandatoryValue,
    InterpolationResolutionError,
    ValidationError,
)

# Hydra announces every job at INFO through the loggers that it installs; `none` installs nothing.
_QUIET = {"hydra/hydra_logging": "none", "hydra/job_logging": "none"}

# The jobs of this program that failed; None while no program runs here, as in a launcher's worker.
_failures: list[str] | None = None


def main(config_name: str, config_path: str | os.PathLike = CONFIGS) -> Callable:
    """Decorator: `function(config)` becomes the program that `config_name`.yaml sets up.

    `config_path` is the folder of the configuration. The decorated function takes no argument,
    reads the command line, and leaves through SystemExit unless all went well.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)  # Hydra reads the program's module and file through __wrapped__
        def job(config: DictConfig) -> Any:
            return _run_job(function, config)

        folder = str(Path(config_path).resolve())
        launch = hydra.main(version_base="1.3", config_path=folder, config_name=config_name)(job)

        @functools.wraps(function)
        def program() -> None:
            _run_program(launch, folder, config_name)

        return program

    return decorate


def numbers(plain: dict[str, Any], name: str, usual: list | None) -> list | None:
    """Takes the list of numbers of `+name=[...]` out of a configuration; `usual` where there is
    none. Raises SolarError for anything but such a list."""
    found = plain.pop(name, None)
    if found is None:
        return usual
    if not (isinstance(found, list) and found and all(type(x) in (int, float) for x in found)):
        raise SolarError(f"{name} is {found!r}; give a list of numbers, as in +{name}=[1,2]")
    return found


def composed(config_name: str, *overrides: str) -> dict[str, Any]:
    """The configuration that a program gets from a command line with these overrides, as a plain
    dict: for Python and notebooks. Raises SolarError for what the command line would refuse.
    """
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = hydra.compose(config_name, list(overrides))
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SolarError(one_line(_with_likely_key(error, str(CONFIGS), config_name))) from None


def _run_program(launch: Callable[[], None], folder: str, config_name: str) -> None:
    global _failures
    # Without it Hydra prints the error and exits itself, before it reaches us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    before = sys.argv
    _failures = []
    try:
        sys.argv = [before[0], *_arguments(before[1:])]
        launch()
    except KeyboardInterrupt:
        print("interrupted: run the same command again and it resumes", file=sys.stderr)
        raise SystemExit(130) from None
    except (HydraException, OmegaConfBaseException, SolarError) as error:
        if isinstance(error, OmegaConfBaseException) and _inside_job(error):
            if not isinstance(error, _MISTAKES):
                raise
        _say(_with_likely_key(error, folder, config_name))
        raise SystemExit(2) from None
    finally:
        sys.argv = before
        failures, _failures = _failures, None
    if failures:
        raise SystemExit(2)


def _arguments(given: list[str]) -> list[str]:
    """The command line as Hydra takes it: flags, then overrides, then `_QUIET`.

    Hydra's own parser refuses `a=1 -m b=2`, so the overrides are brought together. Raises
    SolarError for a flag that Hydra does not have.
    """
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise SolarError(f"{message}: settings are key=value, `--help` lists them")

    parser.error = refuse
    parsed, strays = parser.parse_known_args(given)
    unknown = [stray for stray in strays if stray.startswith("-")]
    if unknown:
        refuse(f"unknown flag {' '.join(unknown)}")
    overrides = [*parsed.overrides, *strays]
    flags = list(given)
    for override in overrides:
        flags.remove(override)
    quiet = [f"{k}={v}" for k, v in _QUIET.items() if not any(o.startswith(k) for o in overrides)]
    return [*flags, *overrides, *quiet]


def _with_likely_key(error: Exception, folder: str, config_name: str) -> Exception:
    """For an override of a key that does not exist: the same error, naming the keys it may have
    meant. For a launcher or sweeper whose plugin is not installed: how to install it.
    """
    if absent := re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'", str(error)):
        return SolarError(
            f"the {absent[1]} {absent[2]} is not installed: run `make launchers`, or "
            "pip install -r requirements.txt -r requirements-launchers.txt"
        )
    found = re.match(r"Could not override '([^']+)'", str(error))
    if not found:
        return error
    unknown = found[1]
    try:
        with hydra.initialize_config_dir(folder, version_base="1.3"):
            config = hydra.compose(config_name)
    except Exception:  # the default configuration does not compose either: no suggestion to make
        return error
    keys = _keys(config)
    last = unknown.rpartition(".")[2]
    near = [key for key in keys if key.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(unknown, keys, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near[:3])}?" if near else "`--cfg job` prints every key"
    return SolarError(f"unknown key {unknown}: {hint}")


def _keys(config: DictConfig, above: str = "") -> list[str]:
    keys = []
    for key in config:
        keys.append(f"{above}{key}")
        if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key):
            continue
        if isinstance(config[key], DictConfig):
            keys.extend(_keys(config[key], f"{above}{key}."))
    return keys


def _run_job(function: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    settings = HydraConfig.get()
    note = Path(settings.runtime.output_dir) / "error.txt"
    note.unlink(missing_ok=True)
    try:
        return function(config)
    except _MISTAKES as error:
        message = one_line(error)
        note.write_text(message + "\n", encoding="utf-8")
        point = " ".join(OmegaConf.to_container(settings.overrides.task, resolve=False))
        if settings.mode == RunMode.MULTIRUN:
            return _failed(point, message)
        _say(error)
        # SystemExit passes Hydra by, which would add a line of its own to an ordinary exception.
        raise SystemExit(2) from None
    except Exception as error:
        note.write_text(traceback.format_exc(), encoding="utf-8")
        if _failures is None:  # a launcher brings the error to the program, but not its traceback
            error.add_note(f"its whole traceback is in {note}")
        raise


def _failed(point: str, message: str) -> "_Failure | None":
    """Says that a job of a sweep failed, and counts it, or has the process do so that runs the
    program.
    """
    if _failures is None:
        return _Failure(point, message)
    if point not in _failures:
        print(f"error: {point}: {message}" if point else f"error: {message}", file=sys.stderr)
        _failures.append(point)
    return None


class _Failure(NamedTuple):
    """What a failed job returns in a launcher's worker. Sweepers do not show what jobs return, so
    unpickling it is what reports the job, wherever its launcher brings it.
    """

    point: str
    message: str

    def __reduce__(self):
        return _failed, tuple(self)


def _inside_job(error: BaseException) -> bool:
    """Whether the error came out of the program's own function rather than from composing its
    configuration.
    """
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return _run_job.__code__ in frames


def _say(error: BaseException) -> None:
    print(f"error: {one_line(error)}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """The message of `error` on one line, without what Hydra adds for its own developers."""
    text = str(error)
    if error.__cause__ is not None and isinstance(error, HydraException):
        text += f"\n{error.__cause__}"
    text = re.split(r"\n\s*Config search path:", text)[0]
    # Hydra lists the options of a group one a line, indented.
    text = re.sub(r"(Available options in '[^']*'):?((?:\n\t\S+)+)", _join_options, text)
    kept = []
    for line in map(str.strip, text.splitlines()):
        if line and not re.match(r"(full_key|object_type|reference_type|See https?:)", line):
            if not any(line in other for other in kept):
                kept.append(line)
    if isinstance(error, OverrideParseException):
        kept.insert(0, f"cannot read {error.override!r}:")
    if isinstance(error, MissingMandatoryValue):
        kept.append("give it as key=value")
    message = " ".join(line if re.search(r"[.:;,?]$", line) else f"{line};" for line in kept)
    return message.rstrip(";,: ") or type(error).__name__


def _join_options(found: re.Match) -> str:
    return f"{found[1]}: {', '.join(found[2].split())}"
