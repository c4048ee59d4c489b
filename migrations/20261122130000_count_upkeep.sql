-- How often each kind of upkeep was asked for: the checks of a repository read one share of its data after the other by it.

ALTER TABLE project_upkeep ADD COLUMN times bigint NOT NULL DEFAULT 0;
