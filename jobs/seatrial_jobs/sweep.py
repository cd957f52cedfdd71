"""`python -m seatrial_jobs.sweep`: give back the room that killed drivers left behind in the cluster.

The queue runs it where Ray will not remove what a driver held, and every job before it takes its own room.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Give it back and say how many placement groups there were."""
    import ray

    from seatrial_jobs.workers import groups

    ray.init(logging_level="warning", log_to_driver=False)
    try:
        print(f"{groups.reclaim()} placement groups of drivers that are gone given back")
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
