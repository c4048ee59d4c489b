-- Copies between projects. What is pending here is what its operations do; they come to their ends together.

-- One row a destination. An operation that has ended is deleted after a while, and its copies are not: no foreign key.
CREATE TABLE project_copies (
    id uuid PRIMARY KEY,
    op_id uuid NOT NULL,
    src_project_id uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    -- A path, or a list of them, each with // before it, which no path has in it.
    src_path text NOT NULL,
    dest_project_id uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    dest_path text NOT NULL,
    -- What goes where: [{"from": …, "to": …}].
    entries jsonb NOT NULL,
    options jsonb NOT NULL,
    snapshot_id text CONSTRAINT project_copies_snapshot_id CHECK (snapshot_id ~ '^[0-9a-f]{64}$'),
    status text NOT NULL DEFAULT 'pending' CONSTRAINT project_copies_status
        CHECK (status IN ('pending', 'done', 'failed', 'canceled', 'expired', 'superseded')),
    apply_op_id uuid,
    last_error text,
    last_attempt_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    finished_at timestamptz,
    CONSTRAINT project_copies_ended_when_not_pending CHECK ((status = 'pending') = (finished_at IS NULL))
);
-- A new copy of the same to the same place takes the turn of the one before.
CREATE UNIQUE INDEX project_copies_one_pending_a_place
    ON project_copies (src_project_id, md5(src_path), dest_project_id, md5(dest_path)) WHERE status = 'pending';
CREATE UNIQUE INDEX project_copies_one_operation_each ON project_copies (apply_op_id) WHERE apply_op_id IS NOT NULL;
CREATE INDEX project_copies_of_an_operation ON project_copies (op_id);
CREATE INDEX project_copies_by_source ON project_copies (src_project_id, id DESC);
CREATE INDEX project_copies_by_destination ON project_copies (dest_project_id, id DESC);
CREATE INDEX project_copies_ended ON project_copies (finished_at) WHERE status <> 'pending';

-- The repository that is made for one copy: its secrets are as those of a project, and it is deleted whole. The row
-- goes when the copy has expired: until then somebody who was paused may still write where it was.
CREATE TABLE copy_repositories (
    op_id uuid PRIMARY KEY,
    src_project_id uuid NOT NULL,
    bucket_id uuid NOT NULL REFERENCES buckets,
    repository_id uuid NOT NULL UNIQUE,
    wrapped_password bytea NOT NULL,
    wrapped_repository_key bytea,
    master_key_id text NOT NULL,
    snapshot_id text CONSTRAINT copy_repositories_snapshot_id CHECK (snapshot_id ~ '^[0-9a-f]{64}$'),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    deleted_at timestamptz
);
CREATE INDEX copy_repositories_to_delete ON copy_repositories (expires_at);

-- A child of another project's operation runs under the key of its own project: nobody else works there meanwhile. A
-- parent that waits for its children does not run, so that they never wait for it.
DROP INDEX operations_one_running_per_exclusive_key;
CREATE UNIQUE INDEX operations_one_running_per_exclusive_key
    ON long_running_operations (exclusive_key) WHERE exclusive_key IS NOT NULL AND status = 'running';
