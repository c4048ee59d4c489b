-- Parents that wait for their children are counted without a look at what has ended.
CREATE INDEX operations_waiting_for_children ON long_running_operations (kind, routing) WHERE waiting_for_children;
