-- The catalog: who, where and what. Invariants that matter are constraints here, named for what they guard.

CREATE TABLE accounts (
    id uuid PRIMARY KEY,
    name text NOT NULL CONSTRAINT accounts_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A token is shown once; only its digest is kept.
CREATE TABLE account_tokens (
    token_sha256 bytea PRIMARY KEY CONSTRAINT account_tokens_digest_length CHECK (octet_length(token_sha256) = 32),
    account_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);

CREATE TABLE hosts (
    id uuid PRIMARY KEY,
    name text NOT NULL CONSTRAINT hosts_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    region text NOT NULL CONSTRAINT hosts_region CHECK (region IN ('wnam', 'enam', 'weur', 'eeur', 'apac', 'oc')),
    status text NOT NULL DEFAULT 'active' CONSTRAINT hosts_status CHECK (status IN ('active', 'draining', 'off')),
    trusted boolean NOT NULL DEFAULT true,
    capacity_bytes bigint,
    last_seen timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- account_id is the account at the provider. A row is written before the bucket is made (status unknown),
-- so that a crash in between leaves a name to go on with.
CREATE TABLE buckets (
    id uuid PRIMARY KEY,
    purpose text NOT NULL CONSTRAINT buckets_purpose CHECK (purpose IN ('backups', 'artifacts', 'rootfs', 'logs')),
    provider text NOT NULL CONSTRAINT buckets_provider CHECK (provider IN ('r2', 's3', 'local')),
    account_id text,
    region text NOT NULL CONSTRAINT buckets_region CHECK (region IN ('wnam', 'enam', 'weur', 'eeur', 'apac', 'oc')),
    location text,
    name text NOT NULL,
    endpoint text,
    status text NOT NULL DEFAULT 'unknown'
        CONSTRAINT buckets_status CHECK (status IN ('active', 'mismatch', 'unknown', 'disabled')),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT buckets_name_is_used_once UNIQUE NULLS NOT DISTINCT (provider, endpoint, name)
);

-- Two first backups at the same moment make one bucket.
CREATE UNIQUE INDEX buckets_one_in_use_per_purpose_and_region
    ON buckets (purpose, region) WHERE status IN ('active', 'unknown');

CREATE TABLE projects (
    id uuid PRIMARY KEY,
    account_id uuid REFERENCES accounts,
    title text NOT NULL CONSTRAINT projects_title_length CHECK (char_length(title) BETWEEN 1 AND 200),
    host_id uuid NOT NULL REFERENCES hosts,
    region text NOT NULL CONSTRAINT projects_region CHECK (region IN ('wnam', 'enam', 'weur', 'eeur', 'apac', 'oc')),
    backup_bucket_id uuid REFERENCES buckets,
    state text NOT NULL DEFAULT 'stopped'
        CONSTRAINT projects_state CHECK (state IN ('stopped', 'starting', 'running', 'stopping')),
    last_edited timestamptz,
    last_changed_generation bigint NOT NULL DEFAULT 0,
    last_backup_at timestamptz,
    last_backup_id text,
    last_verified_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX projects_by_host ON projects (host_id);
CREATE INDEX projects_by_account ON projects (account_id);

-- "Once a project is bound to a bucket, it stays unless a deliberate migration is performed."
CREATE FUNCTION keep_backup_bucket() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.backup_bucket_id IS NOT NULL AND NEW.backup_bucket_id IS DISTINCT FROM OLD.backup_bucket_id
        AND coalesce(current_setting('longhaul.migrating_project', true), '') <> OLD.id::text THEN
        RAISE EXCEPTION 'the backup bucket of project % is set once; only a migration changes it', OLD.id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'projects_backup_bucket_is_set_once';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER projects_backup_bucket_is_set_once BEFORE UPDATE OF backup_bucket_id ON projects
    FOR EACH ROW EXECUTE FUNCTION keep_backup_bucket();

CREATE TABLE project_collaborators (
    project_id uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    account_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, account_id)
);
CREATE INDEX project_collaborators_by_account ON project_collaborators (account_id);

-- The password of a project's repository and the key that encrypts it, both wrapped with the master key
-- named by master_key_id. The key is absent until the repository has been initialised.
CREATE TABLE project_secrets (
    project_id uuid PRIMARY KEY REFERENCES projects,
    repository_id uuid NOT NULL UNIQUE,
    wrapped_password bytea NOT NULL,
    wrapped_repository_key bytea,
    master_key_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    initialised_at timestamptz,
    CONSTRAINT project_secrets_initialised_with_key CHECK ((wrapped_repository_key IS NULL) = (initialised_at IS NULL))
);

CREATE TABLE backups (
    project_id uuid NOT NULL REFERENCES projects,
    backup_id text NOT NULL CONSTRAINT backups_id_is_a_snapshot_id CHECK (backup_id ~ '^[0-9a-f]{64}$'),
    bucket_id uuid NOT NULL REFERENCES buckets,
    op_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    files bigint NOT NULL,
    bytes bigint NOT NULL,
    bytes_added bigint NOT NULL,
    tags text[] NOT NULL DEFAULT '{}',
    purpose text NOT NULL DEFAULT 'backup' CONSTRAINT backups_purpose CHECK (purpose IN ('backup', 'copy')),
    pinned boolean NOT NULL DEFAULT false,
    source text NOT NULL CONSTRAINT backups_source CHECK (source IN ('btrfs-snapshot', 'live')),
    tree text NOT NULL CONSTRAINT backups_tree_is_a_digest CHECK (tree ~ '^[0-9a-f]{64}$'),
    parent text,
    verified_at timestamptz,
    PRIMARY KEY (project_id, backup_id)
);
CREATE UNIQUE INDEX backups_one_per_operation ON backups (op_id);
CREATE INDEX backups_newest_first ON backups (project_id, created_at DESC, backup_id DESC);
