-- An operation whose time is over keeps its exclusive key until its lease is over, too: its worker does not know yet.
CREATE INDEX operations_expired_by_exclusive_key
    ON long_running_operations (exclusive_key) WHERE exclusive_key IS NOT NULL AND status = 'expired';
