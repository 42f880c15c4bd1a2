-- insert_deployment_event: what became of a deployment, in order
INSERT INTO deployment_events (deployment_id, idx, status, data)
SELECT :id, coalesce(max(idx) + 1, 0), :status, :data FROM deployment_events WHERE deployment_id = :id;

-- newest_deployment_event: how it stood when that was last told
SELECT idx, status FROM deployment_events WHERE deployment_id = :id ORDER BY idx DESC LIMIT 1;

-- deployment_events: a page of them
SELECT idx, data FROM deployment_events WHERE deployment_id = :id AND idx > :after ORDER BY idx LIMIT :limit;

-- starting_deployments: those of an app that have yet to show that they start
SELECT id FROM deployments WHERE app = :app AND status = 'starting';

-- ready_container: one of a deployment
SELECT containers.id FROM versions JOIN containers ON containers.version = versions.id
 WHERE versions.deployment_id = :deployment_id AND containers.state = 'ready' LIMIT 1;

-- container_of_deployment: one, however it stands
SELECT containers.id FROM versions JOIN containers ON containers.version = versions.id
 WHERE versions.deployment_id = :deployment_id LIMIT 1;

-- abandoned: a deployment that is neither live nor to be, and has no container
SELECT id FROM deployments
 WHERE id = :id AND status IN ('ready', 'stopped')
   AND NOT EXISTS (SELECT 1 FROM versions JOIN containers ON containers.version = versions.id
                    WHERE versions.deployment_id = deployments.id);

-- has_started: it has shown that it starts, or was stopped before that was told
SELECT idx FROM deployment_events
 WHERE deployment_id = :id AND (status IN ('ready', 'live') OR status = 'stopped' AND idx = 0) LIMIT 1;
