"""The evaluation process: started once, asked line by line, gone with the process that asked.

It is ``python -m solar.evaluate``, a process of its own, which has nothing of the asking one but
the files that a question names. It stays between questions, and so does what it compiled.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from solar.errors import SolarError
from solar.packages import cache_dir

ROOT = Path(__file__).resolve().parent.parent


class Evaluator(NamedTuple):
    """A running process, where its complaints go, and what it was started for."""

    process: subprocess.Popen
    complaints: IO[bytes]
    place: tuple


_running: Evaluator | None = None


def ask(question: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a question, a JSON object either way.

    Raises SolarError with the process's one line on a mistake, and where it was killed;
    RuntimeError with its traceback on a bug.
    """
    try:
        running = _start()
        running.process.stdin.write(json.dumps(question) + "\n")
        running.process.stdin.flush()
        answer = running.process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    except BaseException:  # Ctrl-C: its answer, when it came, would be taken for the next one
        stop()
        raise
    if not answer:
        raise _death()
    found = json.loads(answer)
    if "mistake" in found:
        raise SolarError(found["mistake"])
    if "bug" in found:
        raise RuntimeError(f"the evaluation process failed:\n{found['bug']}")
    return found


def _start() -> Evaluator:
    """The running process, or a new one where there is none for this cache and working folder."""
    global _running
    place = (os.getpid(), os.getcwd(), str(cache_dir()))
    if _running is not None and _running.place == place:
        return _running
    stop()
    complaints = tempfile.TemporaryFile()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "solar.evaluate"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    _running = Evaluator(process, complaints, place)
    return _running


@atexit.register
def stop() -> None:
    """Ends the process, in the middle of an evaluation too: only that one is lost."""
    global _running
    running, _running = _running, None
    if running is None or running.place[0] != os.getpid():
        return
    running.process.kill()
    running.process.wait()
    for pipe in (running.process.stdin, running.process.stdout, running.complaints):
        try:
            pipe.close()
        except BrokenPipeError:  # a question that it did not live to read
            pass


def _death() -> Exception:
    """What to raise about a process that ended without an answer."""
    status = _running.process.wait()
    _running.complaints.seek(0)
    last = _running.complaints.read().decode(errors="replace").strip().splitlines()[-20:]
    stop()
    if status < 0:
        return SolarError(
            f"the evaluation process was killed by signal {-status} (9: memory may have run out); "
            "run the same command again and it resumes"
        )
    return RuntimeError(f"the evaluation process ended with {status}:\n" + "\n".join(last))
