-- The subject that the stream knows an operation by, so that a statement that changes operations can itself write what
-- the stream is to be told.
CREATE FUNCTION operation_subject(scope_type text, scope_id uuid, operation uuid) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN concat('persist.', scope_type, '-' || scope_id::text, '.lro.', operation::text);

-- A list of one scope, the hub's included, is one range of an index, for a plan that does not know which scope it is.
DROP INDEX operations_of_a_scope;
CREATE INDEX operations_of_a_scope ON long_running_operations
    (scope_type, coalesce(scope_id, '00000000-0000-0000-0000-000000000000'), id DESC);
