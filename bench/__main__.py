"""Measures Packtrain against the tools one would use instead, and against what it promises.

    python -m bench [--only cold-pull,links] [--runs 5] [--megabytes 2000] [--keep]

Each case prints its table. With --keep its outcome replaces the one in docs/performance.json, and the tables and the
chart of docs/performance.md are drawn anew. Network links and file systems of its own need root; what cannot be
measured says so.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import results, tools
from bench.bench import Bench
from bench.cases import (
    cached,
    cold_pull,
    directory,
    links,
    manifests,
    memory,
    publish,
    registry,
    second_version,
    serving,
)
from bench.measure import memory_kept, pin_to_server_side
from bench.page import write_page
from bench.results import Outcome

CASES: dict[str, Callable[[Bench], Outcome]] = {
    "cold-pull": cold_pull.run,
    "links": links.run,
    "slow-link": links.run_slow,
    "directory": directory.run,
    "second-version": second_version.run,
    "cached": cached.run,
    "manifests": manifests.run,
    "memory": memory.run,
    "publish": publish.run,
    "serving": serving.run,
    "registry": registry.run,
}
KEPT = tools.ROOT / "docs" / "performance.json"


def main() -> int:
    options = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--only", default=",".join(CASES), help="cases, with commas (default: all)")
    options.add_argument("--megabytes", type=int, default=2000, help="of a model (default: 2000)")
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--directory", type=Path, help="where to work (default: a temporary directory)")
    options.add_argument("--keep", action="store_true", help="put what was measured into docs/")
    chosen = options.parse_args()
    names = chosen.only.split(",")
    if unknown := set(names) - CASES.keys():
        options.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers, mounts and namespaces go with us
    pin_to_server_side()
    for name in names:
        print(f"{name}:", flush=True)
        with memory_kept(), tempfile.TemporaryDirectory(prefix="packtrain-bench-", dir=chosen.directory) as home:
            outcome = CASES[name](Bench(Path(home), chosen.megabytes, chosen.runs))
        outcome.runs = chosen.runs
        outcome.measured_on = results.this_machine(tools.versions())
        print(f"\n{results.summary({name: outcome})}\n\n{results.details(outcome)}\n", flush=True)
        if chosen.keep:
            kept = results.load(KEPT) | {name: outcome}
            results.save(KEPT, {each: kept[each] for each in CASES if each in kept})
            write_page(results.load(KEPT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
