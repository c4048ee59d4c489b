-- Kinds of operation that services have told the registry of, beside those that it is built with.
CREATE TABLE declared_kinds (
    name text PRIMARY KEY,
    declaration jsonb NOT NULL,
    declared_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT declared_kinds_are_named_as_kinds CHECK (name ~ '^[a-z][a-z0-9-]{0,62}$')
);
