-- Fair and bounded claims, and heartbeats in order. An operation is `ready` when it may be claimed: it is queued, its time has come and it does
-- not wait for children. Those whose time is to come are made ready when it has, so that a hundred thousand of them
-- cost a claim nothing.
ALTER TABLE long_running_operations
    -- Whose turn it takes: the account of its project or scope; all zeros for the hub's own.
    ADD COLUMN account_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    -- The host, or the hub, that runs it or ran it last.
    ADD COLUMN claimed_by text,
    ADD COLUMN ready boolean NOT NULL DEFAULT false,
    -- The highest number of a heartbeat of this attempt: an earlier one that arrives later changes nothing but the lease.
    ADD COLUMN heartbeats bigint NOT NULL DEFAULT 0;

UPDATE long_running_operations SET ready = true
    WHERE status = 'queued' AND NOT waiting_for_children AND not_before <= now();
UPDATE long_running_operations AS operation SET account_id = project.account_id
    FROM projects AS project
    WHERE operation.scope_type = 'project' AND operation.scope_id = project.id AND project.account_id IS NOT NULL;
UPDATE long_running_operations SET account_id = scope_id WHERE scope_type = 'account';

ALTER TABLE long_running_operations
    ADD CONSTRAINT operations_ready_is_queued CHECK (NOT ready OR (status = 'queued' AND NOT waiting_for_children));

DROP INDEX operations_to_claim;
CREATE INDEX operations_ready
    ON long_running_operations (routing, kind, account_id, priority DESC, not_before, id) WHERE ready;
CREATE INDEX operations_to_make_ready
    ON long_running_operations (not_before) WHERE status = 'queued' AND NOT ready AND NOT waiting_for_children;
-- Who runs how many: for caps and turns; and for the sweep, which looks at all that run.
DROP INDEX operations_running;
CREATE INDEX operations_running
    ON long_running_operations (kind, claimed_by, account_id) WHERE status = 'running';
