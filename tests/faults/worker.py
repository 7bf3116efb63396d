"""Reads mutated files in a process with bounded memory: `worker.py PARSER,PARSER COUNT FOLDER`.

Prints a JSON line per parser: how many files were taken and refused, and which did neither. One that takes too long ends the
process with its stack on stderr; the parser and number of the one being read are in FOLDER/place.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, TextIO

from mapanything.errors import InputError
from tests.helpers.mutations import mutated
from tests.helpers.parsers import PARSERS, Check

SECONDS = 20  # for one input: most take a millisecond
MEMORY = 1 << 30  # more than what is needed at the start
MOST_FAILURES = 5
LONGEST = 2000  # characters of a refusal


def main(names: list[str], count: int, folder: Path) -> None:
    made = {}
    for name in names:
        workplace = folder / name
        workplace.mkdir()
        originals, check = PARSERS[name].own(workplace)
        for data in originals:
            check(data)  # what is not broken is taken
        made[name] = originals, check
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    os.fsync = lambda _: None  # of what is written here nothing has to survive; a busy disk takes a tenth of a second each
    with (folder / "place").open("w") as place:
        for name, (originals, check) in made.items():
            print(json.dumps({"parser": name} | read_all(name, count, originals, check, place)), flush=True)


def read_all(name: str, count: int, originals: list[bytes], check: Check, place: TextIO) -> dict[str, Any]:
    taken, refused, failures = 0, 0, []
    for number in range(count):
        place.seek(0)
        place.write(f"{name} {number}\n")
        place.flush()
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            check(mutated(name, number, originals))
            taken += 1
        except InputError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > LONGEST:
                failures.append(f"input {number}: not one short line: {str(error)[:300]}")
        except Exception:  # what must not be, whatever it is
            failures.append(f"input {number}: {traceback.format_exc(limit=-4)}")
        faulthandler.cancel_dump_traceback_later()
        if len(failures) == MOST_FAILURES:
            break
    return {"taken": taken, "refused": refused, "failures": failures}


if __name__ == "__main__":
    main(sys.argv[1].split(","), int(sys.argv[2]), Path(sys.argv[3]))
