"""A reader that may be killed at any moment: each item goes into a file together with the checkpoint behind it.

`python reader.py JOB_OR_CHECKPOINT FILE`. Whoever starts it again gives it the last checkpoint of the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import apothic


def main(place: str, file: Path) -> None:
    """Follow the job's items to its end."""
    job = apothic.Job.attach(place)
    with file.open("a") as notes:
        for event in job.stream_events(event_types=["job.stream_item", "job.end"]):
            match event:
                case apothic.JobStreamItemEvent(value, item_index):
                    line = {"item_index": item_index, "item": value, "checkpoint": str(job.checkpoint())}
                    notes.write(json.dumps(line) + "\n")
                    notes.flush()
                case apothic.JobResetEvent(reason):
                    sys.exit(f"a gap was declared: {reason}, lost {event.lost}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
