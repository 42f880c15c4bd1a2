-- jobs_by_status: how many jobs stand where, every status named. Each part has an index, of what is few; those that
-- have ended well are what is left of all that have ended
WITH few (status, n) AS MATERIALIZED (
    SELECT status, count(*) FROM jobs WHERE status IN ('failed', 'cancelled', 'timed_out') GROUP BY status
    UNION ALL SELECT status, count(*) FROM jobs WHERE status IN ('queued', 'retrying') GROUP BY status
    UNION ALL SELECT status, count(*) FROM leases JOIN jobs ON jobs.seq = leases.job GROUP BY status)
SELECT statuses.status,
       CASE statuses.status
       WHEN 'succeeded' THEN (SELECT count(*) FROM jobs WHERE ended_at IS NOT NULL)
                             - (SELECT coalesce(sum(n), 0) FROM few JOIN statuses AS ends USING (status) WHERE final)
       ELSE coalesce((SELECT n FROM few WHERE few.status = statuses.status), 0) END AS n
  FROM statuses;

-- waiting_by_function: how long the queue of each function is, over all its versions
SELECT functions.app, functions.name, coalesce(sum(versions.waiting), 0) AS n
  FROM functions LEFT JOIN versions ON versions.function_id = functions.id
 GROUP BY functions.id ORDER BY functions.app, functions.name;

-- agents_by_state: how many agents have a session
SELECT iif(connected, 'connected', 'away') AS state, count(*) AS n FROM agents GROUP BY connected;

-- containers_by_state: how many containers there are
SELECT state, count(*) AS n FROM containers GROUP BY state;
