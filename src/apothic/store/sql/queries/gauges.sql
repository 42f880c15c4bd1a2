-- jobs_by_status: how many jobs stand where, every status named
SELECT statuses.status, (SELECT count(*) FROM jobs WHERE jobs.status = statuses.status) AS n FROM statuses;

-- waiting_by_function: how long the queue of each function is, over all its versions
SELECT functions.app, functions.name, coalesce(sum(versions.waiting), 0) AS n
  FROM functions LEFT JOIN versions ON versions.function_id = functions.id
 GROUP BY functions.id ORDER BY functions.app, functions.name;

-- agents_by_state: how many agents have a session
SELECT iif(connected, 'connected', 'away') AS state, count(*) AS n FROM agents GROUP BY connected;

-- containers_by_state: how many containers there are
SELECT state, count(*) AS n FROM containers GROUP BY state;
