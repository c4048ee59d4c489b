-- Long-running operations: the truth about them. Streams are copies of this.

CREATE TABLE long_running_operations (
    id uuid PRIMARY KEY,
    kind text NOT NULL,
    scope_type text NOT NULL CONSTRAINT operations_scope_type CHECK (scope_type IN ('project', 'account', 'host', 'hub')),
    scope_id uuid,
    status text NOT NULL DEFAULT 'queued' CONSTRAINT operations_status
        CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'canceled', 'expired')),
    created_by text NOT NULL,
    owner text,
    routing text NOT NULL,
    input jsonb NOT NULL,
    result jsonb,
    error jsonb,
    progress_summary jsonb,
    checkpoint jsonb CONSTRAINT operations_checkpoint_size CHECK (octet_length(checkpoint::text) <= 65536),
    attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL CONSTRAINT operations_max_attempts CHECK (max_attempts >= 1),
    lease_losses integer NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    priority integer NOT NULL DEFAULT 0 CONSTRAINT operations_priority CHECK (priority BETWEEN -100 AND 100),
    not_before timestamptz NOT NULL DEFAULT now(),
    lease_id uuid,
    lease_until timestamptz,
    heartbeat_at timestamptz,
    cancel_requested_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    dedupe_key text,
    input_hash bytea NOT NULL,
    exclusive_key text,
    parent_id uuid REFERENCES long_running_operations ON DELETE CASCADE,
    child_key text,
    waiting_for_children boolean NOT NULL DEFAULT false,
    retry_of uuid,
    rev bigint NOT NULL DEFAULT 1,
    CONSTRAINT operations_hub_has_no_scope_id CHECK ((scope_type = 'hub') = (scope_id IS NULL)),
    CONSTRAINT operations_running_has_a_lease CHECK (status <> 'running' OR (lease_id IS NOT NULL AND lease_until IS NOT NULL)),
    CONSTRAINT operations_terminal_has_an_end CHECK ((status IN ('queued', 'running')) = (finished_at IS NULL)),
    CONSTRAINT operations_waiting_is_queued CHECK (NOT waiting_for_children OR status = 'queued')
) WITH (fillfactor = 80);
-- Heartbeats touch heartbeat_at, lease_until, progress_summary, rev and updated_at: none of them is in an
-- index, so that they stay HOT updates.

CREATE UNIQUE INDEX operations_one_active_per_dedupe_key
    ON long_running_operations (scope_type, scope_id, kind, dedupe_key) NULLS NOT DISTINCT
    WHERE dedupe_key IS NOT NULL AND status IN ('queued', 'running');
-- Children run under their parent's key.
CREATE UNIQUE INDEX operations_one_running_per_exclusive_key
    ON long_running_operations (exclusive_key)
    WHERE exclusive_key IS NOT NULL AND parent_id IS NULL AND status = 'running';
CREATE UNIQUE INDEX operations_one_child_per_key
    ON long_running_operations (parent_id, child_key) WHERE parent_id IS NOT NULL;
CREATE INDEX operations_to_claim
    ON long_running_operations (routing, kind, priority DESC, not_before, id)
    WHERE status = 'queued' AND NOT waiting_for_children;
CREATE INDEX operations_queued_by_exclusive_key
    ON long_running_operations (exclusive_key, kind, routing) WHERE exclusive_key IS NOT NULL AND status = 'queued';
CREATE INDEX operations_running ON long_running_operations (id) WHERE status = 'running';
CREATE INDEX operations_of_a_scope ON long_running_operations (scope_type, scope_id, id DESC);
CREATE INDEX operations_to_expire ON long_running_operations (expires_at);

-- What the streams still have to be told: written with the change itself, deleted once it is in the stream.
-- `event` is added to the ring; every entry has the summary published anew; `purge` removes both subjects.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    op_id uuid NOT NULL,
    subject text NOT NULL,
    event jsonb,
    purge boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_of_an_operation ON outbox (op_id, id);
