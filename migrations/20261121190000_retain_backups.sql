-- A backup that is being deleted: marked before anything of it goes, and from then on neither listed nor restored. Its
-- row goes when its snapshot is gone.
ALTER TABLE backups ADD COLUMN deleting_at timestamptz,
    -- Since when it is known not to restore to what it was, and why: a drill has tried. One that succeeds ends it.
    ADD COLUMN bad_since timestamptz,
    ADD COLUMN bad_reason text,
    ADD CONSTRAINT backups_bad_for_a_reason CHECK ((bad_since IS NULL) = (bad_reason IS NULL)),
    ADD CONSTRAINT backups_pinned_are_not_deleted CHECK (deleting_at IS NULL OR NOT pinned);
CREATE INDEX backups_being_deleted ON backups (project_id, deleting_at, backup_id) WHERE deleting_at IS NOT NULL;
