-- upsert_agent: an agent has said hello
INSERT INTO agents (id, host, pid, release, cpu, memory_mb, gpus, connected, gone_at)
VALUES (:id, :host, :pid, :release, :cpu, :memory_mb, :gpus, 1, NULL)
ON CONFLICT (id) DO UPDATE SET connected = 1, gone_at = NULL;

-- key_of_agent: which one speaks for it, and whether that is still good
SELECT key_id, keys.revoked_at IS NULL AND coalesce(keys.expires_at > :now, 1) AS good
  FROM agent_keys JOIN keys ON keys.id = key_id WHERE agent_id = :id;

-- bind_agent: from now on this key speaks for it
INSERT INTO agent_keys (agent_id, key_id) VALUES (:id, :key) ON CONFLICT (agent_id) DO UPDATE SET key_id = :key;

-- disconnect_agent: its session ended; it has until gone_at to come back
UPDATE agents SET connected = 0, gone_at = :gone_at WHERE id = :id AND connected = 1;

-- agent_leaving: it finishes what it has; each time it says so it gets another term
UPDATE agents SET connected = 0, gone_at = :gone_at WHERE id = :id;

-- put_off_agents: the control plane itself was away
UPDATE agents SET gone_at = gone_at + :by WHERE gone_at IS NOT NULL;

-- put_off_leases: the control plane itself was away
UPDATE leases SET expires_at = expires_at + :by;

-- disconnect_agents: a new control plane starts with no session
UPDATE agents SET connected = 0, gone_at = :gone_at;

-- renew_all: a new control plane gives every lease a full term by its own clock
UPDATE leases SET expires_at = :expires_at;

-- restart_idle: idle times are by the monotonic clock of a control plane that is gone; so is who knew of requests
UPDATE containers SET idle_since = :now
 WHERE idle_since IS NOT NULL
    OR state = 'ready' AND EXISTS (SELECT 1 FROM addresses WHERE addresses.container_id = containers.id);

-- gone_agents: those that have not come back in time
SELECT id FROM agents WHERE connected = 0 AND gone_at <= :now;

-- delete_agent: forget it; its containers must be gone before
DELETE FROM agents WHERE id = :id;

-- agents: the fleet, with what each has to do
SELECT agents.*,
       (SELECT count(*) FROM containers WHERE agent_id = agents.id) AS containers,
       (SELECT count(*) FROM leases JOIN containers ON containers.id = leases.container_id
         WHERE agent_id = agents.id) AS jobs
  FROM agents ORDER BY id;

-- containers_of_agent: all that an agent was told to start
SELECT * FROM containers WHERE agent_id = :agent_id;

-- container: one of them
SELECT containers.*, versions.deployment_id FROM containers JOIN versions ON versions.id = containers.version
 WHERE containers.id = :id;

-- insert_container: an agent is told to start it
INSERT INTO containers (id, agent_id, version, state, idle_since) VALUES (:id, :agent_id, :version, 'starting', NULL);

-- container_ready: it can take inputs
UPDATE containers SET state = 'ready', idle_since = coalesce(idle_since, :now) WHERE id = :id AND state = 'starting';

-- container_stopping: it is given no more
UPDATE containers SET state = 'stopping' WHERE id = :id;

-- delete_container: it is gone
DELETE FROM containers WHERE id = :id;

-- container_idle: since when it has had nothing to do (NULL: it has)
UPDATE containers
   SET idle_since = iif(idle_since IS NULL, :now, NULL)
 WHERE id = :id AND (idle_since IS NULL) <> EXISTS (SELECT 1 FROM leases WHERE container_id = :id);

-- insert_lease: an attempt belongs to a container until expires_at
INSERT INTO leases (job, token, attempt, container_id, expires_at) VALUES (?, ?, ?, ?, ?);

-- renew_leases: all leases of an agent, for another term, in one statement
UPDATE leases SET expires_at = :expires_at
 WHERE container_id IN (SELECT id FROM containers WHERE agent_id = :agent_id);

-- tokens_of_agent: the leases an agent holds
SELECT leases.token FROM leases JOIN containers ON containers.id = leases.container_id WHERE agent_id = :agent_id;

-- seats: every container, how many of its slots are taken, and whether its deployment still counts; or those alone of
-- versions with jobs that wait
SELECT containers.id, containers.agent_id, containers.version, containers.state, containers.idle_since,
       versions.cpu, versions.memory_mb, versions.slots, versions.keep_warm_s,
       deployments.app, deployments.status, agents.connected, services.version IS NOT NULL AS serves, services.port,
       (SELECT count(*) FROM leases WHERE leases.container_id = containers.id) AS taken
  FROM containers JOIN versions ON versions.id = containers.version
  LEFT JOIN services ON services.version = versions.id
  JOIN deployments ON deployments.id = versions.deployment_id
  JOIN agents ON agents.id = containers.agent_id
 WHERE :whole OR containers.version IN (SELECT id FROM versions WHERE waiting > 0)
 ORDER BY containers.id;

-- wants: do jobs wait for room in a container, and does anything wait for a container of its own?
SELECT EXISTS (SELECT 1 FROM versions WHERE waiting > 0) AS jobs,
       EXISTS (SELECT 1 FROM services WHERE wanted > 0) OR EXISTS (SELECT 1 FROM deployments WHERE status = 'starting')
       AS others;

-- hosts: the agents; one that is away for a moment still counts for what can ever be run
SELECT id, cpu, memory_mb, gpus, connected FROM agents ORDER BY id;

-- wanting: versions with jobs that wait
SELECT versions.id, versions.slots, versions.per_container, versions.max_containers,
       versions.cpu, versions.memory_mb, versions.gpu, deployments.app
  FROM versions JOIN deployments ON deployments.id = versions.deployment_id WHERE waiting > 0;

-- due: how many jobs of a version could begin now, counted up to what could be placed
SELECT count(*) FROM (
    SELECT 1 FROM jobs WHERE version = :version AND status IN ('queued', 'retrying') AND run_at <= :now LIMIT :limit);

-- leased_versions: every job that holds a slot, and of which version
SELECT jobs.id, jobs.version FROM leases JOIN jobs ON jobs.seq = leases.job;

-- queued_versions: those of a list that could begin if there were a slot
SELECT jobs.id, jobs.version FROM json_each(:ids) AS wanted JOIN jobs ON jobs.id = wanted.value
 WHERE jobs.status = 'queued' AND jobs.run_at <= :now;

-- proofs: what must show that a deployment starts: each of its services, or its first function when it has none
SELECT versions.*, deployments.app, services.port
  FROM deployments CROSS JOIN versions ON versions.deployment_id = deployments.id
  LEFT JOIN services ON services.version = versions.id
 WHERE deployments.status = 'starting'
   AND (services.proved = 0
        OR versions.id = (SELECT min(id) FROM versions AS first WHERE first.deployment_id = deployments.id)
           AND NOT EXISTS (SELECT 1 FROM services JOIN versions AS other ON other.id = services.version
                            WHERE other.deployment_id = deployments.id))
 ORDER BY versions.id;

-- deployment_of_container: what a container was started for
SELECT deployments.id, deployments.app, deployments.status, containers.version, containers.state,
       EXISTS (SELECT 1 FROM addresses WHERE addresses.container_id = containers.id) AS serves
  FROM containers JOIN versions ON versions.id = containers.version
  JOIN deployments ON deployments.id = versions.deployment_id
 WHERE containers.id = :id;

-- delayed_jobs: those of a version that were delayed and are due; they come before the others
SELECT * FROM jobs
 WHERE version = :version AND status IN ('queued', 'retrying') AND run_at > 0 AND run_at <= :now
 ORDER BY run_at, seq LIMIT :limit;

-- waiting_jobs: the next of a version, first in, first out (one ORDER BY over both sorted the whole queue: 0.2 ms a job)
SELECT * FROM jobs
 WHERE version = :version AND status IN ('queued', 'retrying') AND run_at = 0 ORDER BY seq LIMIT :limit;

-- next_due: when the next delayed job can begin
SELECT min(run_at) FROM jobs WHERE status IN ('queued', 'retrying') AND run_at > :now;

-- cancelling: attempts of an agent that are to be ended, for one that may not have heard of it
SELECT jobs.id, leases.token
  FROM containers JOIN leases ON leases.container_id = containers.id JOIN jobs ON jobs.seq = leases.job
 WHERE containers.agent_id = :agent_id AND jobs.status = 'cancelling';
