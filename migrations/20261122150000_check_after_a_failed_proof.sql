-- After a drill that has found a backup to be bad, the next check reads all data, and not one share of it.

ALTER TABLE project_upkeep ADD COLUMN reads_all boolean NOT NULL DEFAULT false;
