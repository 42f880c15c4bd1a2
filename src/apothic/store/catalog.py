"""Apps, deployments, functions, keys. Each method is one transaction."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from typing import Any

import msgspec

from apothic.clock import Clock
from apothic.errors import ConflictError, NotFoundError
from apothic.protocol import ids
from apothic.protocol.messages import (
    AppLogs,
    AppManifest,
    AppView,
    DeploymentView,
    FunctionSpec,
    FunctionView,
    KeyView,
    ShowAppLogs,
)
from apothic.store import applogs, services, views
from apothic.store.db import Database
from apothic.store.rollout import Rollout, no_deployment
from apothic.store.tx import Tx


class MissingBlobs(Exception):
    """A manifest names bytes that are not here, by these hashes."""

    def __init__(self, hashes: list[str]) -> None:
        super().__init__(f"{len(hashes)} blobs are missing")
        self.hashes = hashes


class Catalog:
    """What is deployed, and who may use it."""

    def __init__(self, db: Database, clock: Clock, ring: Callable[[str], None]) -> None:
        self._db = db
        self._clock = clock
        self._ring = ring
        self.gateway_url: str | None = None  # where services are found

    async def missing_blobs(self, manifest: AppManifest) -> list[str]:
        """Return the hashes that the manifest names and that are not here; those that are stay for a while."""
        hashes = json.dumps(blobs_of(manifest))
        if await self._db.read(lambda tx: bool(tx.all("marked_blobs", hashes=hashes))):
            await self._db.write(lambda tx: tx.run("unmark_blobs", hashes=hashes))
        return await self._db.read(lambda tx: _missing(tx, manifest))

    async def deploy(self, manifest: AppManifest) -> DeploymentView:
        """Store a manifest as a deployment that is to be started; the same content gives the same deployment.

        One that was live or ready before is live at once; one that had failed or was stopped is started again.
        Raises `MissingBlobs`.
        """

        def write(tx: Tx) -> DeploymentView:
            now, content_hash = self._clock.now(), content_hash_of(manifest)
            tx.run("insert_app", name=manifest.app, now=now)
            same = tx.one("deployment_by_hash", app=manifest.app, content_hash=content_hash)
            if same is None:
                if missing := _missing(tx, manifest):
                    raise MissingBlobs(missing)
                deployment_id = ids.new("dep", now)
                self._insert(tx, manifest, deployment_id, content_hash, now)
            else:
                deployment_id = same["id"]
                self._again(tx, same)
            tx.run("ask_for", app=manifest.app, id=deployment_id)
            tx.fleet_changed = True
            return self._view(tx, deployment_id)

        return await self._db.write(write)

    def _insert(self, tx: Tx, manifest: AppManifest, deployment_id: str, content_hash: str, now: float) -> None:
        tx.run(
            "insert_deployment",
            id=deployment_id, app=manifest.app, content_hash=content_hash, manifest=views.encode(manifest), now=now,
        )  # fmt: skip
        tx.many("insert_deployment_blob", [(deployment_id, sha256) for sha256 in blobs_of(manifest)])
        for spec in manifest.functions:
            tx.run("insert_function", id=ids.new("fn", now), app=manifest.app, name=spec.name)
            row = tx.one("function_id", app=manifest.app, name=spec.name)
            assert row is not None
            tx.run("insert_version", deployment_id=deployment_id, function_id=row["id"], **_version(spec))
            services.insert(tx, spec, deployment_id, row["id"])
        rollout = self._rollout(tx)
        rollout.build(deployment_id)
        if not manifest.functions:  # nothing that could fail to start
            rollout.go_live(manifest.app, deployment_id)

    def _again(self, tx: Tx, deployment: sqlite3.Row) -> None:
        if deployment["status"] == "ready":
            self._rollout(tx).go_live(deployment["app"], deployment["id"])
        elif deployment["status"] in ("failed", "stopped"):
            self._rollout(tx).again(deployment["app"], deployment["id"])

    def _rollout(self, tx: Tx) -> Rollout:
        return Rollout(tx, self._clock.now(), self._ring)

    async def activate(self, app: str, deployment_id: str) -> DeploymentView:
        """Make an older version live again. Raises `NotFoundError`, `ConflictError` (it never started)."""

        def write(tx: Tx) -> DeploymentView:
            row = tx.one("deployment", id=deployment_id)
            if row is None or row["app"] != app:
                raise NotFoundError(
                    f"{app} has no deployment {deployment_id}", hint=f"`apothic app show {app}` lists them"
                )
            never = row["status"] == "stopped" and tx.one("has_started", id=deployment_id) is None
            if never or row["status"] not in ("ready", "stopped", "live"):
                raise ConflictError(
                    f"{deployment_id} is {row['status']}{', and never started' * never}",
                    hint="deploy a version that starts",
                )
            if row["status"] != "live":
                self._rollout(tx).go_live(app, deployment_id)
            tx.run("ask_for", app=app, id=deployment_id)
            tx.fleet_changed = True
            return self._view(tx, deployment_id)

        return await self._db.write(write)

    async def deployment(self, deployment_id: str) -> DeploymentView:
        """Return one deployment. Raises `NotFoundError`."""
        return self._db.look(lambda tx: self._view(tx, deployment_id))

    async def deployments(self, app: str) -> list[DeploymentView]:
        """Return an app's versions, newest first. Raises `NotFoundError`."""

        def read(tx: Tx) -> list[DeploymentView]:
            _app(tx, app)
            rows = tx.all("deployments_of_app", app=app)
            return [self._deployment(tx, row) for row in rows]

        return await self._db.read(read)

    async def apps(self) -> list[AppView]:
        """Return all apps, by name."""
        return await self._db.read(lambda tx: [self._app_view(tx, row) for row in tx.all("apps")])

    async def app(self, name: str) -> AppView:
        """Return one app. Raises `NotFoundError`."""
        return await self._db.read(lambda tx: self._app_view(tx, _app(tx, name)))

    async def app_logs(self, ask: ShowAppLogs) -> AppLogs:
        """Return lines of an app that belong to no job."""
        return await self._db.read(lambda tx: applogs.read(tx, ask))

    async def stop_app(self, name: str) -> AppView:
        """Take an app's live deployment away; it takes no more jobs. Raises `NotFoundError`."""

        def write(tx: Tx) -> AppView:
            _app(tx, name)
            self._rollout(tx).stop(name)
            tx.fleet_changed = True
            return self._app_view(tx, _app(tx, name))

        return await self._db.write(write)

    async def functions(self, app: str | None, name: str | None) -> list[FunctionView]:
        """Return functions of live deployments."""
        return await self._db.read(
            lambda tx: [
                views.function(row, row["app"], self.gateway_url)
                for row in tx.all("live_functions", app=app, name=name)
            ]
        )

    async def function(self, function_id: str) -> FunctionView:
        """Return one function as its live deployment has it. Raises `NotFoundError`."""

        def read(tx: Tx) -> FunctionView:
            row = tx.one("live_function", id=function_id)
            if row is None:
                raise NotFoundError(
                    f"there is no live function {function_id}", hint="`apothic app list` shows what is deployed"
                )
            return views.function(row, row["app"], self.gateway_url)

        return self._db.look(read)

    def _view(self, tx: Tx, deployment_id: str) -> DeploymentView:
        row = tx.one("deployment", id=deployment_id)
        if row is None:
            raise no_deployment(deployment_id)
        return self._deployment(tx, row)

    def _deployment(self, tx: Tx, row: sqlite3.Row) -> DeploymentView:
        return views.deployment(row, tx.all("versions_of_deployment", id=row["id"]), self.gateway_url)

    def _app_view(self, tx: Tx, row: sqlite3.Row) -> AppView:
        functions = tx.all("versions_of_deployment", id=row["live"] or "")
        return AppView(
            name=row["name"],
            created_at=row["created_at"],
            deployment_id=row["live"],
            stopped=bool(row["stopped"]),
            functions=[views.function(each, row["name"], self.gateway_url) for each in functions],
        )

    # --- keys and secrets ---------------------------------------------------------------------------------------

    async def add_key(
        self, key_id: str, name: str, secret_hash: str, scopes: list[str], expires_at: float | None
    ) -> KeyView:
        """Store a key by the hash of its secret."""

        def write(tx: Tx) -> KeyView:
            tx.run(
                "insert_key", id=key_id, name=name, secret_hash=secret_hash, scopes=json.dumps(scopes),
                now=self._clock.now(), expires_at=expires_at,
            )  # fmt: skip
            return _key(tx, key_id)

        return await self._db.write(write)

    async def key_by_hash(self, secret_hash: str) -> KeyView | None:
        """Return whose secret has this hash."""

        def read(tx: Tx) -> KeyView | None:
            row = tx.one("key_by_hash", secret_hash=secret_hash)
            return views.key(row) if row is not None else None

        return self._db.look(read)

    async def key(self, key_id: str) -> KeyView | None:
        """Return one key, or `None`."""

        def read(tx: Tx) -> KeyView | None:
            row = tx.one("key", id=key_id)
            return views.key(row) if row is not None else None

        return self._db.look(read)

    async def keys(self) -> list[KeyView]:
        """Return all keys, oldest first."""
        return await self._db.read(lambda tx: [views.key(row) for row in tx.all("keys")])

    async def revoke_key(self, key_id: str) -> KeyView:
        """End a key. Raises `NotFoundError`."""

        def write(tx: Tx) -> KeyView:
            tx.run("revoke_key", id=key_id, now=self._clock.now())
            return _key(tx, key_id)

        return await self._db.write(write)

    async def serves(self, container: str) -> bool:
        """Tell whether a container of a service is there."""
        return self._db.look(lambda tx: tx.one("serving_container", id=container) is not None)

    async def use_key(self, key_id: str) -> None:
        """Note that a key was presented."""
        await self._db.write(lambda tx: tx.run("use_key", id=key_id, now=self._clock.now()))

    async def write_something(self) -> None:
        """Write a row that means nothing, to see that the store takes writes."""
        fresh = os.urandom(8)
        await self._db.write(lambda tx: tx.run("write_something", value=fresh))

    async def secret(self, name: str, fresh: bytes) -> bytes:
        """Return what is stored under `name`; store `fresh` when nothing is."""

        def write(tx: Tx) -> bytes:
            tx.run("insert_secret", name=name, value=fresh)
            row = tx.one("secret", name=name)
            assert row is not None
            return bytes(row["value"])

        return await self._db.write(write)


def blobs_of(manifest: AppManifest) -> list[str]:
    """Return every hash that a manifest names, once."""
    payloads = [spec.payload for spec in manifest.functions if spec.payload is not None]
    return list(dict.fromkeys([file.sha256 for file in manifest.files] + payloads))


def _missing(tx: Tx, manifest: AppManifest) -> list[str]:
    wanted = blobs_of(manifest)
    known = {row[0] for row in tx.all("known_blobs", hashes=json.dumps(wanted))}
    return [sha256 for sha256 in wanted if sha256 not in known]


def content_hash_of(manifest: AppManifest) -> str:
    """Return what tells two deployments of an app apart."""
    ordered = msgspec.structs.replace(
        manifest,
        functions=sorted(manifest.functions, key=lambda spec: spec.name),
        files=sorted(manifest.files, key=lambda file: file.path),
    )
    return hashlib.sha256(msgspec.json.encode(ordered, order="deterministic")).hexdigest()


def _version(spec: FunctionSpec) -> dict[str, Any]:
    options = spec.options
    target = options.concurrency.target_inputs if options.concurrency is not None else None
    gpu = options.gpu
    return {
        "spec": views.encode(spec),
        "slots": options.slots,
        # Past the larger of the two a further container is wanted.
        "per_container": max(options.tasks_per_container, target or 1),
        "max_containers": options.max_containers,
        "max_pending": options.max_pending_tasks,
        "keep_warm_s": float(options.keep_warm_s),
        "cpu": float(options.cpu),
        "memory_mb": options.memory_mb,
        "gpu": json.dumps([gpu] if isinstance(gpu, str) else gpu) if gpu else None,
        "stream_window": options.stream_window,
    }


def _app(tx: Tx, name: str) -> sqlite3.Row:
    row = tx.one("app", name=name)
    if row is None:
        raise NotFoundError(f"there is no app {name!r}", hint="`apothic app list` shows what is deployed")
    return row


def _key(tx: Tx, key_id: str) -> KeyView:
    row = tx.one("key", id=key_id)
    if row is None:
        raise NotFoundError(f"there is no key {key_id}", hint="`apothic key list` shows them")
    return views.key(row)
