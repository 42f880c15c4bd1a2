-- Rules that must hold at every moment. Each query names one and must return no row.

-- end_iff_final: a job has exactly one job.end if it has ended, and none before.
SELECT jobs.id FROM jobs
 WHERE (SELECT count(*) FROM events WHERE events.job = jobs.seq AND type = 'job.end') <> (ended_at IS NOT NULL);

-- end_is_last: job.end has the highest index of its job.
SELECT jobs.id FROM jobs JOIN events ON events.job = jobs.seq AND type = 'job.end'
 WHERE events.idx <> jobs.next_index - 1;

-- indices_whole: stored and trimmed events together are all indices that were given out.
SELECT jobs.id FROM jobs
 WHERE next_index <> (SELECT count(*) FROM events WHERE events.job = jobs.seq)
                   + (SELECT coalesce(sum(lost), 0) FROM windows WHERE windows.job = jobs.seq);

-- lease_iff_leased: starting, running and cancelling jobs have a lease, and no others.
SELECT jobs.id FROM jobs JOIN statuses USING (status) LEFT JOIN leases ON leases.job = jobs.seq
 WHERE leased <> (leases.job IS NOT NULL);

-- lease_is_of_the_attempt: a lease belongs to its job's present attempt.
SELECT jobs.id FROM leases JOIN jobs ON jobs.seq = leases.job WHERE leases.attempt <> jobs.attempt;

-- slots: no container runs more jobs than it has slots; what it holds beyond them has not begun.
SELECT containers.id FROM containers JOIN versions ON versions.id = containers.version
 WHERE (SELECT count(*) FROM leases JOIN jobs ON jobs.seq = leases.job
         WHERE leases.container_id = containers.id AND jobs.status = 'running') > versions.slots;

-- lease_on_its_version: a lease's container runs the version that the job is pinned to.
SELECT jobs.id FROM leases JOIN jobs ON jobs.seq = leases.job JOIN containers ON containers.id = leases.container_id
 WHERE containers.version <> jobs.version;

-- attempts_by_one: attempt numbers rise by 1 from 1: each was claimed, and its claim is an event.
SELECT jobs.id FROM jobs
 WHERE attempt <> (SELECT count(*) FROM events
                    WHERE events.job = jobs.seq AND type = 'job.status'
                      AND json_extract(data, '$.status') = 'starting' AND events.attempt BETWEEN 1 AND jobs.attempt);

-- attempts_in_order: no event of an attempt comes after the first of a later one.
SELECT jobs.id FROM jobs
 WHERE EXISTS (SELECT 1 FROM (SELECT attempt, lag(attempt) OVER (ORDER BY idx) AS earlier
                                FROM events WHERE events.job = jobs.seq)
                WHERE attempt < earlier);

-- outcome_events: a result event iff it succeeded, an error event iff it ended otherwise.
SELECT jobs.id FROM jobs
 WHERE (SELECT count(*) FROM events WHERE events.job = jobs.seq AND type = 'job.result') <> (status = 'succeeded')
    OR (SELECT count(*) FROM events WHERE events.job = jobs.seq AND type = 'job.error')
       <> (status IN ('failed', 'cancelled', 'timed_out'));

-- status_events: the newest status event says what the row says.
SELECT jobs.id FROM jobs
 WHERE status <> (SELECT json_extract(data, '$.status') FROM events
                   WHERE events.job = jobs.seq AND type = 'job.status' ORDER BY idx DESC LIMIT 1);

-- windows_whole: a window counts exactly the events that are kept.
SELECT jobs.id FROM windows JOIN jobs ON jobs.seq = windows.job
 WHERE kept <> (SELECT count(*) FROM events WHERE events.job = windows.job AND events.type = windows.type)
    OR EXISTS (SELECT 1 FROM events
                WHERE events.job = windows.job AND events.type = windows.type AND idx <= trimmed);

-- named_blobs: what is noted of blobs belongs to events that are kept.
SELECT jobs.id FROM event_blobs JOIN jobs ON jobs.seq = event_blobs.job
 WHERE NOT EXISTS (SELECT 1 FROM events
                    WHERE events.job = event_blobs.job AND events.idx = event_blobs.idx AND type = 'job.stream_item');

-- items_counted: in a job whose items never began again, the newest one kept has the last number.
SELECT jobs.id FROM windows JOIN jobs ON jobs.seq = windows.job
 WHERE windows.type = 'job.stream_item' AND windows.kept > 0
   AND NOT EXISTS (SELECT 1 FROM restarts WHERE restarts.job = windows.job)
   AND kept + lost <> 1 + (SELECT json_extract(data, '$.item_index') FROM events
                            WHERE events.job = windows.job AND events.type = windows.type ORDER BY idx DESC LIMIT 1);

-- restarts_open: items begin again where an attempt was opened.
SELECT jobs.id FROM restarts JOIN jobs ON jobs.seq = restarts.job
 WHERE NOT EXISTS (SELECT 1 FROM events WHERE events.job = restarts.job AND events.idx = restarts.idx
                     AND type = 'job.status' AND json_extract(data, '$.status') = 'starting');

-- waiting_counted: a version's count of waiting jobs is right.
SELECT versions.id FROM versions
 WHERE waiting <> (SELECT count(*) FROM jobs WHERE jobs.version = versions.id AND status IN ('queued', 'retrying'));

-- nothing_in_limbo: a job that has not ended is claimable, delayed, or leased.
SELECT jobs.id FROM jobs LEFT JOIN leases ON leases.job = jobs.seq
 WHERE ended_at IS NULL AND status NOT IN ('queued', 'retrying') AND leases.job IS NULL;

-- live_is_live: an app's live deployment is one that is live, and the only one.
SELECT apps.name FROM apps LEFT JOIN deployments ON deployments.id = apps.live
 WHERE (apps.live IS NOT NULL AND (deployments.id IS NULL OR deployments.status <> 'live' OR deployments.app <> apps.name))
    OR (SELECT count(*) FROM deployments AS other WHERE other.app = apps.name AND other.status = 'live')
       <> (apps.live IS NOT NULL);

-- ticks_of_jobs: a tick's job is one of its function's, kept or past its retention; no two ticks have the same one.
SELECT ticks.job FROM ticks
 WHERE job IS NOT NULL
   AND (NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = ticks.job AND jobs.function_id = ticks.function_id
                    UNION ALL
                    SELECT 1 FROM gone_jobs WHERE gone_jobs.id = ticks.job AND gone_jobs.function_id = ticks.function_id)
        OR (SELECT count(*) FROM ticks AS other WHERE other.job = ticks.job) > 1);

-- schedules_of_live: only versions of live deployments come round by themselves.
SELECT schedules.version FROM schedules LEFT JOIN versions ON versions.id = schedules.version
 WHERE NOT EXISTS (SELECT 1 FROM apps WHERE apps.live = versions.deployment_id);

-- gone_is_gone: of a job past its retention nothing is left but that it was.
SELECT gone_jobs.id FROM gone_jobs JOIN jobs ON jobs.id = gone_jobs.id;

-- unwanted_has_no_name: what waits to be collected is named by nothing.
SELECT sha256 FROM unwanted_blobs WHERE EXISTS (SELECT 1 FROM wanted_blobs WHERE wanted_blobs.sha256 = unwanted_blobs.sha256);

-- blobs_counted: the bytes of all blobs are added up right.
SELECT bytes FROM blob_total WHERE bytes <> (SELECT coalesce(sum(size), 0) FROM blobs);

-- deployments_told: the newest event of a deployment says how it stands, and none before it is missing.
SELECT deployments.id FROM deployments
  LEFT JOIN deployment_events AS newest
         ON newest.deployment_id = deployments.id
        AND newest.idx = (SELECT max(idx) FROM deployment_events WHERE deployment_id = deployments.id)
 WHERE newest.idx IS NULL
    OR newest.idx + 1 <> (SELECT count(*) FROM deployment_events WHERE deployment_id = deployments.id)
    OR NOT CASE deployments.status
           WHEN 'starting' THEN newest.status IN ('building', 'starting')
           WHEN 'ready' THEN newest.status IN ('ready', 'draining', 'stopped')
           WHEN 'stopped' THEN newest.status IN ('building', 'starting', 'draining', 'stopped')
           ELSE newest.status = deployments.status END
    OR newest.status = 'draining'
       AND NOT EXISTS (SELECT 1 FROM versions JOIN containers ON containers.version = versions.id
                        WHERE versions.deployment_id = deployments.id);

-- services_have_addresses: the containers of services may answer somewhere, and no others.
SELECT containers.id FROM containers LEFT JOIN services ON services.version = containers.version
  LEFT JOIN addresses ON addresses.container_id = containers.id
 WHERE (services.version IS NULL) <> (addresses.container_id IS NULL);

-- services_run_no_jobs: whatever comes to a service comes by HTTP.
SELECT jobs.id FROM jobs JOIN services ON services.version = jobs.version;
