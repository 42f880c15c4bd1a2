-- version_for_submit: the version a new job is pinned to: the one that is named, else the live one
SELECT versions.*, functions.app, functions.name, apps.stopped,
       EXISTS (SELECT 1 FROM services WHERE services.version = versions.id) AS serves
  FROM functions
  JOIN apps ON apps.name = functions.app
  JOIN versions ON versions.function_id = functions.id
                AND versions.deployment_id = coalesce(:deployment_id, apps.live)
 WHERE functions.id = :function_id;

-- jobs_by_key: earlier submits under idempotency keys of a list
SELECT idempotency_key, id, input_hash FROM jobs
 WHERE function_id = :function_id AND idempotency_key IN (SELECT value FROM json_each(:keys));

-- last_job: the highest number that a job ever had
SELECT seq FROM sqlite_sequence WHERE name = 'jobs';

-- insert_job: a new job, queued
INSERT INTO jobs (seq, id, version, function_id, created_at, run_at, expires_at, timeout_s, retries, delivery, accept,
                  input, input_sha256, input_hash, idempotency_key, parent, retry_of, status, next_index)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'queued', 1);

-- move_job: take one arrow of the lifecycle table, and the indices of its events; no row back means the job stands elsewhere by now
UPDATE jobs
   SET status = arrows.target,
       next_index = next_index + :events,
       run_at = coalesce(:run_at, run_at),
       ended_at = iif((SELECT final FROM statuses WHERE statuses.status = arrows.target), :now, NULL),
       user_failures = user_failures + :user_failures,
       crashes = crashes + :crashes,
       drains = drains + :drains,
       result = :result, result_sha256 = :result_sha256,
       failure = :failure, failure_sha256 = :failure_sha256
  FROM arrows
 WHERE jobs.seq = :job AND arrows.move = :move AND arrows.source = jobs.status
RETURNING jobs.status, jobs.next_index;

-- step_jobs: the moves that are no end and change little, from where each job is known to stand
UPDATE jobs SET status = ?, attempt = ?, next_index = ?, started_at = coalesce(?, started_at)
 WHERE seq = ? AND status = ? AND next_index = ?;

-- succeed_jobs: the ends that most jobs come to, each with its value
UPDATE jobs SET status = ?, next_index = ?, ended_at = ?, result = ? WHERE seq = ? AND status = ? AND next_index = ?;

-- job_row: a job with what its lease says, for a decision about its next move
SELECT jobs.*, leases.token, leases.last_report, leases.container_id, versions.stream_window
  FROM jobs JOIN versions ON versions.id = jobs.version LEFT JOIN leases ON leases.job = jobs.seq
 WHERE jobs.id = :id;

-- held_jobs: those of a list that have a lease, and where a reader stands for whom their items are kept
SELECT jobs.seq, jobs.id, jobs.version, jobs.status, jobs.attempt, jobs.next_index, jobs.retries, jobs.delivery,
       jobs.user_failures, jobs.crashes, jobs.drains,
       leases.token, leases.last_report, leases.container_id, versions.stream_window, holds.sent,
       versions.keep_warm_s > 0 AND deployments.status IN ('live', 'starting') AS lasts
  FROM json_each(:ids) AS wanted JOIN jobs ON jobs.id = wanted.value JOIN leases ON leases.job = jobs.seq
  JOIN versions ON versions.id = jobs.version JOIN deployments ON deployments.id = versions.deployment_id
  LEFT JOIN holds ON holds.job = jobs.seq;

-- leased_jobs_of_container: what a container that is gone leaves behind
SELECT jobs.*, leases.token, leases.last_report, leases.container_id, versions.stream_window
  FROM leases JOIN jobs ON jobs.seq = leases.job JOIN versions ON versions.id = jobs.version
 WHERE leases.container_id = :container_id;

-- overdue_leases: attempts whose agent has not renewed in time
SELECT jobs.*, leases.token, leases.last_report, leases.container_id, versions.stream_window
  FROM leases JOIN jobs ON jobs.seq = leases.job JOIN versions ON versions.id = jobs.version
 WHERE leases.expires_at <= :now LIMIT 500;

-- clock_put_back: back-offs that were counted before wall time was put back; those of the moment since are not so far away
UPDATE jobs SET run_at = run_at - :by WHERE status = 'retrying' AND run_at >= :now + :by - 2;

-- expired_jobs: queued past their deadline, and never begun
SELECT jobs.*, NULL AS token, -1 AS last_report, NULL AS container_id, versions.stream_window
  FROM jobs JOIN versions ON versions.id = jobs.version
 WHERE status = 'queued' AND expires_at IS NOT NULL AND expires_at <= :now AND started_at IS NULL LIMIT 500;

-- waiting_jobs_of_version: those queued for something that can never run
SELECT jobs.*, NULL AS token, -1 AS last_report, NULL AS container_id, versions.stream_window
  FROM jobs JOIN versions ON versions.id = jobs.version
 WHERE jobs.version = :version AND status = 'queued' LIMIT 500;

-- touch_report: remember that this report was applied, so that the same one counts once
UPDATE leases SET last_report = :seq WHERE job = :job;

-- job_view: what the outside sees of one job
SELECT jobs.*, functions.app, functions.name AS function, versions.deployment_id, versions.spec
  FROM jobs JOIN versions ON versions.id = jobs.version JOIN functions ON functions.id = versions.function_id
 WHERE jobs.id = :id;

-- ended_jobs: those of a list that have ended
SELECT jobs.*, functions.app, functions.name AS function, versions.deployment_id, versions.spec
  FROM json_each(:ids) AS wanted
  JOIN jobs ON jobs.id = wanted.value
  JOIN versions ON versions.id = jobs.version JOIN functions ON functions.id = versions.function_id
 WHERE jobs.ended_at IS NOT NULL;

-- known_jobs: which of a list exist
SELECT jobs.id FROM json_each(:ids) AS wanted JOIN jobs ON jobs.id = wanted.value;

-- list_jobs: a page, newest first
SELECT jobs.*, functions.app, functions.name AS function, versions.deployment_id, versions.spec
  FROM jobs JOIN versions ON versions.id = jobs.version JOIN functions ON functions.id = versions.function_id
 WHERE jobs.seq < :before AND (:status IS NULL OR jobs.status = :status)
 ORDER BY jobs.seq DESC LIMIT :limit;

-- list_jobs_of: the same of some functions: as many of each, and of these the newest
SELECT jobs.*, functions.app, functions.name AS function, versions.deployment_id, versions.spec
  FROM functions CROSS JOIN jobs
    ON jobs.seq IN (SELECT own.seq FROM jobs AS own
                     WHERE own.function_id = functions.id AND own.seq < :before
                       AND (:status IS NULL OR own.status = :status) ORDER BY own.seq DESC LIMIT :limit)
  JOIN versions ON versions.id = jobs.version
 WHERE (:function IS NULL OR functions.name = :function) AND (:app IS NULL OR functions.app = :app)
 ORDER BY jobs.seq DESC LIMIT :limit;

-- list_ended_badly: the same of a status that few jobs end in
SELECT jobs.*, functions.app, functions.name AS function, versions.deployment_id, versions.spec
  FROM jobs INDEXED BY jobs_ended_badly
  JOIN versions ON versions.id = jobs.version JOIN functions ON functions.id = versions.function_id
 WHERE jobs.status IN ('failed', 'cancelled', 'timed_out') AND jobs.status = :status AND jobs.seq < :before
   AND (:function IS NULL OR functions.name = :function) AND (:app IS NULL OR functions.app = :app)
 ORDER BY jobs.seq DESC LIMIT :limit;

-- list_unfinished: the same of a status that few jobs are in
SELECT jobs.*, functions.app, functions.name AS function, versions.deployment_id, versions.spec
  FROM (SELECT seq FROM jobs INDEXED BY jobs_waiting WHERE status IN ('queued', 'retrying')
        UNION ALL SELECT job FROM leases) AS unfinished
  CROSS JOIN jobs ON jobs.seq = unfinished.seq
  JOIN versions ON versions.id = jobs.version JOIN functions ON functions.id = versions.function_id
 WHERE jobs.status = :status AND jobs.seq < :before
   AND (:function IS NULL OR functions.name = :function) AND (:app IS NULL OR functions.app = :app)
 ORDER BY jobs.seq DESC LIMIT :limit;

-- job_ahead: how many of the same version wait before this job
SELECT count(*) FROM jobs
 WHERE version = :version AND status IN ('queued', 'retrying') AND seq < :seq AND run_at <= :now;

-- unfinished_jobs: is anything still to be done? (for the embedded server's idle stop)
SELECT EXISTS (SELECT 1 FROM versions WHERE waiting > 0) OR EXISTS (SELECT 1 FROM leases);

-- version_limit: how many of the containers that a version may have it has; one that ends counts while it has jobs
SELECT max_containers,
       (SELECT count(*) FROM containers
         WHERE containers.version = versions.id
           AND (state <> 'stopping' OR EXISTS (SELECT 1 FROM leases WHERE container_id = containers.id))) AS used
  FROM versions WHERE id = :version;

-- work_of_job: how the container of a leased job stands, and whether the job is held back for its reader
SELECT containers.state, coalesce(holds.paused, 0) AS paused
  FROM leases JOIN containers ON containers.id = leases.container_id LEFT JOIN holds ON holds.job = leases.job
 WHERE leases.job = :job;
