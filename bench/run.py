"""`make bench`: run every benchmark module, print its tables and goals, keep the figures as JSON.

A benchmark fails when it raises, and when a property among its goals does not hold (`bench.goals`);
then so does the run, after all others have had their turn. Each module runs in a process of its
own, so that none measures what another left in memory. The result goes to
`bench/results/<date>-<kind of host>.json` with machine, versions and commands.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import goals
from bench.machine import describe, host_kind

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


def benchmark_names() -> list[str]:
    """Modules of this folder that have a `run` function, by name."""
    own = Path(__file__).name
    return sorted(
        path.stem
        for path in FOLDER.glob("*.py")
        if path.name != own and "\ndef run(" in path.read_text(encoding="utf-8")
    )


def table(figures: dict[str, Any], indent: int = 2) -> str:
    """Nested figures as aligned lines; a list of alike rows becomes columns."""
    lines = []
    width = max((len(str(name)) for name in figures), default=0)
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += [f"{'':{indent}}{name}", table(value, indent + 2)]
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            lines += [f"{'':{indent}}{name}", _columns(value, indent + 2)]
        else:
            lines.append(f"{'':{indent}}{name:{width}}  {_text(value)}")
    return "\n".join(lines)


def _columns(rows: list[dict[str, Any]], indent: int) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_text(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(names))]
    return "\n".join(
        " " * indent
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(figures: dict[str, Any]) -> int:
    """Print figures and what became of the goals; 1 when a property does not hold, else 0."""
    print(table({name: value for name, value in figures.items() if name != "goals"}))
    for line in goals.lines(figures):
        print(line)
    return int(bool(goals.broken(figures)))


def run_module(name: str) -> dict[str, Any]:
    """Run one benchmark in a fresh interpreter; its figures, or what went wrong."""
    command = [sys.executable, "-m", "bench.run", "--only", name]
    print(f"\n== {name}", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        status = subprocess.run([*command, "--figures", str(output)], check=False).returncode
        figures = json.loads(output.read_text()) if output.exists() else None
    entry = {
        "command": f"python -m bench.run --only {name}",
        "seconds": round(time.monotonic() - started, 1),
        "figures": figures,
    }
    if status or figures is None:
        entry["failed"] = f"exit status {status}"
        print(f"  FAILED with exit status {status}", flush=True)
    else:
        if report(figures):
            entry["failed"] = f"does not hold: {', '.join(goals.broken(figures))}"
            print("  FAILED: " + entry["failed"])
        sys.stdout.flush()
    return entry


def write_results(entries: dict[str, Any]) -> Path:
    """Keep figures under a name that tells day and machine; returns the file."""
    machine = describe()
    day = datetime.date.today().isoformat()
    path = RESULTS / f"{day}-{host_kind(machine)}.json"
    RESULTS.mkdir(exist_ok=True)
    known = json.loads(path.read_text())["benchmarks"] if path.exists() else {}
    document = {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "benchmarks": known | entries,
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path


def main() -> int:
    """0 when every benchmark ran and all properties hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"benchmarks to run: {benchmark_names()}")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        figures = importlib.import_module(f"bench.{arguments.only}").run()
        text = json.dumps(figures, indent=2)
        if arguments.figures:
            arguments.figures.write_text(text, encoding="utf-8")
        else:
            print(text)
        return 0
    unknown = set(arguments.names) - set(benchmark_names())
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    entries = {name: run_module(name) for name in arguments.names or benchmark_names()}
    print(f"\nwritten to {write_results(entries).relative_to(FOLDER.parent)}")
    return int(any("failed" in entry for entry in entries.values()))


if __name__ == "__main__":
    sys.exit(main())
