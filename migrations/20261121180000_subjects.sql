-- The subject that the stream knows an operation by, so that a statement that changes operations can itself write what
-- the stream is to be told.
CREATE FUNCTION operation_subject(scope_type text, scope_id uuid, operation uuid) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN concat('persist.', scope_type, '-' || scope_id::text, '.lro.', operation::text);
