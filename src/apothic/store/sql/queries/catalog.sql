-- insert_app: an app is there from its first deployment on
INSERT INTO apps (name, created_at) VALUES (:name, :now) ON CONFLICT (name) DO NOTHING;

-- app: one app
SELECT * FROM apps WHERE name = :name;

-- apps: all of them
SELECT * FROM apps ORDER BY name;

-- stop_app: no live deployment any more
UPDATE apps SET live = NULL, stopped = 1 WHERE name = :name;

-- go_live: this deployment answers for its app from now on
UPDATE apps SET live = :id, stopped = 0 WHERE name = :name;

-- deployment_by_hash: the same content was deployed before
SELECT * FROM deployments WHERE app = :app AND content_hash = :content_hash;

-- deployment: one deployment
SELECT deployments.*, apps.live AS live_id FROM deployments JOIN apps ON apps.name = deployments.app
 WHERE deployments.id = :id;

-- deployments_of_app: newest first
SELECT deployments.*, apps.live AS live_id FROM deployments JOIN apps ON apps.name = deployments.app
 WHERE deployments.app = :app ORDER BY deployments.id DESC;

-- insert_deployment: a new version of an app, to be started
INSERT INTO deployments (id, app, content_hash, manifest, status, created_at)
VALUES (:id, :app, :content_hash, :manifest, 'starting', :now);

-- set_deployment: how a deployment stands; a failure only with `failed`
UPDATE deployments SET status = :status, failure = :failure WHERE id = :id;

-- ask_for: this is the version that was asked for last
UPDATE deployments SET asked = (SELECT max(asked) + 1 FROM deployments AS other WHERE other.app = :app) WHERE id = :id;

-- newer_live: the app's live version, if it was asked for after this one
SELECT newer.id FROM deployments AS mine JOIN deployments AS newer ON newer.app = mine.app
 WHERE mine.id = :id AND newer.status = 'live' AND newer.asked > mine.asked;

-- retire_live: what was live until now stays ready to be activated again
UPDATE deployments SET status = 'ready' WHERE app = :app AND status = 'live';

-- stop_deployments: nothing of the app is to run
UPDATE deployments SET status = 'stopped' WHERE app = :app AND status IN ('live', 'starting');

-- insert_deployment_blob: the deployment needs these bytes
INSERT INTO deployment_blobs (deployment_id, sha256) VALUES (?, ?) ON CONFLICT DO NOTHING;

-- insert_function: a function keeps its id through all versions
INSERT INTO functions (id, app, name) VALUES (:id, :app, :name) ON CONFLICT (app, name) DO NOTHING;

-- function_id: the id of an app's function
SELECT id FROM functions WHERE app = :app AND name = :name;

-- insert_version: one function of one deployment
INSERT INTO versions (deployment_id, function_id, spec, slots, per_container, max_containers, max_pending, keep_warm_s,
                      cpu, memory_mb, gpu, stream_window)
VALUES (:deployment_id, :function_id, :spec, :slots, :per_container, :max_containers, :max_pending, :keep_warm_s,
        :cpu, :memory_mb, :gpu, :stream_window);

-- versions_of_deployment: its functions, in the order of the manifest
SELECT versions.*, functions.name, versions.deployment_id = apps.live AS live, schedules.next_at, ticks.at AS tick_at, ticks.outcome, ticks.job
  FROM versions JOIN functions ON functions.id = versions.function_id JOIN apps ON apps.name = functions.app
  LEFT JOIN schedules ON schedules.version = versions.id
  LEFT JOIN ticks ON ticks.function_id = versions.function_id
                  AND ticks.at = (SELECT max(at) FROM ticks WHERE ticks.function_id = versions.function_id)
 WHERE versions.deployment_id = :id ORDER BY versions.id;

-- live_functions: look-up by app and name, each optional
SELECT versions.*, functions.app, functions.name, 1 AS live, schedules.next_at, ticks.at AS tick_at, ticks.outcome, ticks.job
  FROM apps JOIN versions ON versions.deployment_id = apps.live
  JOIN functions ON functions.id = versions.function_id
  LEFT JOIN schedules ON schedules.version = versions.id
  LEFT JOIN ticks ON ticks.function_id = versions.function_id
                  AND ticks.at = (SELECT max(at) FROM ticks WHERE ticks.function_id = versions.function_id)
 WHERE (:app IS NULL OR functions.app = :app) AND (:name IS NULL OR functions.name = :name)
 ORDER BY functions.app, versions.id;

-- live_function: one function by id, as its live deployment has it
SELECT versions.*, functions.app, functions.name, 1 AS live, schedules.next_at, ticks.at AS tick_at, ticks.outcome, ticks.job
  FROM functions JOIN apps ON apps.name = functions.app
  JOIN versions ON versions.function_id = functions.id AND versions.deployment_id = apps.live
  LEFT JOIN schedules ON schedules.version = versions.id
  LEFT JOIN ticks ON ticks.function_id = versions.function_id
                  AND ticks.at = (SELECT max(at) FROM ticks WHERE ticks.function_id = versions.function_id)
 WHERE functions.id = :id;

-- version_start: all an agent needs to start a container of a version
SELECT versions.spec, versions.deployment_id, deployments.app, deployments.status, deployments.manifest
  FROM versions JOIN deployments ON deployments.id = versions.deployment_id WHERE versions.id = :id;

-- insert_blob: these bytes are on disk; sent again, they are as fresh as new ones
INSERT INTO blobs (sha256, size, created_at) VALUES (:sha256, :size, :now)
ON CONFLICT (sha256) DO UPDATE SET created_at = excluded.created_at;

-- known_blobs: which of a list are there
SELECT blobs.sha256 FROM json_each(:hashes) AS wanted JOIN blobs ON blobs.sha256 = wanted.value;

-- insert_key: a key; of its secret only the hash
INSERT INTO keys (id, name, secret_hash, scopes, created_at, expires_at)
VALUES (:id, :name, :secret_hash, :scopes, :now, :expires_at);

-- key_by_hash: who presents this secret
SELECT * FROM keys WHERE secret_hash = :secret_hash;

-- key: one key
SELECT * FROM keys WHERE id = :id;

-- keys: all of them
SELECT * FROM keys ORDER BY id;

-- revoke_key: from now on it opens nothing
UPDATE keys SET revoked_at = coalesce(revoked_at, :now) WHERE id = :id;

-- use_key: when it was last presented
UPDATE keys SET last_used_at = :now WHERE id = :id;

-- insert_secret: what the server must remember and nobody may see
INSERT INTO secrets (name, value) VALUES (:name, :value) ON CONFLICT (name) DO NOTHING;

-- write_something: a row that means nothing, to see that the disk takes it
INSERT INTO secrets (name, value) VALUES ('probe', :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- secret: the same, read back
SELECT value FROM secrets WHERE name = :name;
