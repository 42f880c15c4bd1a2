"""`attach.py JOB`: follow a job that another process began, by its id alone."""

from __future__ import annotations

import os
import sys

from apothic import Job

job = Job.attach(sys.argv[1])
seen = 0
ended = False
while not ended:
    ended = job.status() in ("succeeded", "failed", "cancelled", "timed_out")
    lines = job.logs()
    for line in lines[seen:]:
        print(f"  | {line}")
    seen = len(lines)
print(f"  | process {os.getpid()} saw {seen} lines and the end: {len(job.wait())} rows")
