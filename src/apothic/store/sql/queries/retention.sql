-- due_jobs: jobs that ended at or before a time, the oldest first; one whose items are kept for a reader stays
SELECT seq, id FROM jobs
 WHERE ended_at <= :before AND NOT EXISTS (SELECT 1 FROM holds WHERE holds.job = jobs.seq)
 ORDER BY ended_at LIMIT :limit;

-- oldest_output: what a job holds of the types that can be many, from the start
SELECT idx, type, length(data) AS bytes FROM events
 WHERE job = :job AND (type = 'job.log' OR type = 'job.stream_item') ORDER BY idx;

-- blobs_of_items: what the items up to there name
SELECT sha256, size FROM blobs
 WHERE sha256 IN (SELECT sha256 FROM event_blobs WHERE job = :job AND idx <= :upto);

-- blobs_of_job: what a job and its items name
SELECT sha256, size FROM blobs
 WHERE sha256 IN (SELECT sha256 FROM event_blobs WHERE job = :job
                  UNION SELECT input_sha256 FROM jobs WHERE seq = :job
                  UNION SELECT result_sha256 FROM jobs WHERE seq = :job
                  UNION SELECT failure_sha256 FROM jobs WHERE seq = :job);

-- insert_gone_job: that it was, how it ended, and under which key
INSERT INTO gone_jobs (id, version, function_id, status, attempt, created_at, ended_at, gone_at, input_hash,
                       idempotency_key)
SELECT id, version, function_id, status, attempt, created_at, ended_at, :now, input_hash, idempotency_key
  FROM jobs WHERE seq = :job;

-- delete_event_blobs: what its items name
DELETE FROM event_blobs WHERE job = :job;

-- delete_events: all that happened to it
DELETE FROM events WHERE job = :job;

-- delete_windows: what it kept
DELETE FROM windows WHERE job = :job;

-- delete_restarts: where its items began again
DELETE FROM restarts WHERE job = :job;

-- delete_job: the job itself, last
DELETE FROM jobs WHERE seq = :job;

-- gone_job: what is left of a job past its retention
SELECT gone_jobs.*, functions.app, functions.name AS function, versions.deployment_id, versions.spec,
       NULL AS run_at, NULL AS started_at, NULL AS parent, NULL AS retry_of, NULL AS failure
  FROM gone_jobs JOIN versions ON versions.id = gone_jobs.version
  JOIN functions ON functions.id = gone_jobs.function_id
 WHERE gone_jobs.id = :id;

-- gone_jobs_by_key: jobs past their retention that were submitted under keys of a list not long ago, the newest last
SELECT idempotency_key, id, input_hash FROM gone_jobs
 WHERE function_id = :function_id AND idempotency_key IN (SELECT value FROM json_each(:keys)) AND created_at > :since
 ORDER BY created_at;

-- gone_jobs: which of a list are past their retention
SELECT gone_jobs.id FROM json_each(:ids) AS wanted JOIN gone_jobs ON gone_jobs.id = wanted.value;

-- function_of_job: whose job it is, or was
SELECT functions.app, functions.name FROM jobs JOIN functions ON functions.id = jobs.function_id WHERE jobs.id = :id
UNION ALL
SELECT functions.app, functions.name FROM gone_jobs JOIN functions ON functions.id = gone_jobs.function_id
 WHERE gone_jobs.id = :id;

-- old_tombstones: is anything to be forgotten?
SELECT id FROM gone_jobs WHERE gone_at <= :before LIMIT 1;

-- forget_gone_jobs: not even that they were is known any more
DELETE FROM gone_jobs WHERE id IN (SELECT id FROM gone_jobs WHERE gone_at <= :before LIMIT :limit);

-- bytes_of_pages: what the pages take that hold something
SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size;

-- bytes_of_blobs: what all blobs take
SELECT bytes FROM blob_total;

-- bytes_doomed: what the blobs take that only wait to be collected
SELECT coalesce(sum(size), 0) FROM unwanted_blobs JOIN blobs USING (sha256);

-- blobs_in_range: the next blobs by name, and whether one has lost its last name unnoticed
SELECT sha256, NOT EXISTS (SELECT 1 FROM wanted_blobs WHERE wanted_blobs.sha256 = blobs.sha256)
           AND NOT EXISTS (SELECT 1 FROM unwanted_blobs WHERE unwanted_blobs.sha256 = blobs.sha256) AS idle
  FROM blobs WHERE sha256 > :after ORDER BY sha256 LIMIT :limit;

-- mark_blobs: nothing names them from now on
INSERT INTO unwanted_blobs (sha256, since)
SELECT blobs.sha256, :now FROM json_each(:hashes) AS idle JOIN blobs ON blobs.sha256 = idle.value
 WHERE NOT EXISTS (SELECT 1 FROM wanted_blobs WHERE wanted_blobs.sha256 = blobs.sha256)
ON CONFLICT (sha256) DO NOTHING;

-- unmark_blobs: somebody is about to name them
DELETE FROM unwanted_blobs WHERE sha256 IN (SELECT value FROM json_each(:hashes));

-- marked_blobs: which of a list wait to be collected
SELECT unwanted_blobs.sha256 FROM json_each(:hashes) AS asked
  JOIN unwanted_blobs ON unwanted_blobs.sha256 = asked.value;

-- all_marks: every blob that waits to be collected
SELECT sha256 FROM unwanted_blobs;

-- unmark_all: a new control plane gives each its whole time
DELETE FROM unwanted_blobs;

-- due_blobs: those nobody has wanted for long enough, the oldest first
SELECT sha256 FROM unwanted_blobs WHERE since <= :before ORDER BY since LIMIT :limit;

-- take_mark: is it still unwanted, and for long enough?
DELETE FROM unwanted_blobs WHERE sha256 = :sha256 AND since <= :before;

-- delete_blob: its file goes next
DELETE FROM blobs WHERE sha256 = :sha256;
