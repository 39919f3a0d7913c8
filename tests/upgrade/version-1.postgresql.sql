CREATE TABLE sagapost_schema (
    part VARCHAR(32) NOT NULL,
    version INTEGER NOT NULL,
    installed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (part)
);

CREATE TABLE outbox_relays (
    relay UUID NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    idle SMALLINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (relay)
);

CREATE TABLE outbox_leases (
    partition SMALLINT NOT NULL,
    owner UUID,
    token BIGINT DEFAULT '0' NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (partition),
    CONSTRAINT outbox_lease_owner_expires CHECK ((owner IS NULL) = (expires_at IS NULL))
);

CREATE TABLE outbox (
    position BIGINT GENERATED ALWAYS AS IDENTITY,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    event_id UUID NOT NULL,
    key_hash SMALLINT NOT NULL,
    topic VARCHAR(255) NOT NULL,
    type VARCHAR(255) NOT NULL,
    source VARCHAR(255) NOT NULL,
    time TIMESTAMP WITH TIME ZONE NOT NULL,
    subject TEXT,
    datacontenttype VARCHAR(255),
    dataschema TEXT,
    correlationid VARCHAR(255),
    causationid VARCHAR(255),
    partitionkey VARCHAR(255),
    traceparent VARCHAR(255),
    tracestate TEXT,
    extensions JSONB,
    data BYTEA NOT NULL,
    attempts SMALLINT DEFAULT '0' NOT NULL,
    next_attempt_at TIMESTAMP WITH TIME ZONE,
    last_error TEXT,
    PRIMARY KEY (position),
    CONSTRAINT outbox_refused_rows_say_why CHECK ((attempts = 0) = (next_attempt_at IS NULL) AND (attempts = 0) = (last_error IS NULL)),
    CONSTRAINT outbox_key_hash_range CHECK (key_hash >= 0)
);

CREATE INDEX outbox_refused ON outbox (next_attempt_at) WHERE attempts > 0;

CREATE INDEX outbox_xid_position ON outbox (xid, position);

DO $install$
DECLARE
    outbox CONSTANT regclass := 'outbox';
    home CONSTANT text := (
        SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = outbox);
BEGIN
    EXECUTE 'CREATE OR REPLACE FUNCTION ' || home || '.outbox_ring() RETURNS trigger LANGUAGE plpgsql'
        || ' SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ring$
    BEGIN
        IF EXISTS (SELECT FROM ' || home || '.outbox_relays'
        || ' WHERE idle = 1 AND expires_at > clock_timestamp()) THEN
            PERFORM pg_notify(''sagapost_d9cbe96c'', '''');
        END IF;
        RETURN NULL;
    END
    $ring$';
    EXECUTE 'REVOKE ALL ON FUNCTION ' || home || '.outbox_ring() FROM PUBLIC';
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = outbox AND tgname = 'outbox_ring') THEN
        EXECUTE 'CREATE TRIGGER outbox_ring AFTER INSERT ON ' || outbox
            || ' FOR EACH STATEMENT EXECUTE FUNCTION ' || home || '.outbox_ring()';
    END IF;
END
$install$;

CREATE TABLE outbox_dead (
    position BIGINT NOT NULL,
    event_id UUID NOT NULL,
    key_hash SMALLINT NOT NULL,
    topic VARCHAR(255) NOT NULL,
    type VARCHAR(255) NOT NULL,
    source VARCHAR(255) NOT NULL,
    time TIMESTAMP WITH TIME ZONE NOT NULL,
    subject TEXT,
    datacontenttype VARCHAR(255),
    dataschema TEXT,
    correlationid VARCHAR(255),
    causationid VARCHAR(255),
    partitionkey VARCHAR(255),
    traceparent VARCHAR(255),
    tracestate TEXT,
    extensions JSONB,
    data BYTEA NOT NULL,
    attempts SMALLINT NOT NULL,
    last_error TEXT NOT NULL,
    died_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    blocks_key SMALLINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (position)
);

CREATE INDEX outbox_dead_blocking ON outbox_dead (partitionkey) WHERE blocks_key = 1;

CREATE TABLE outbox_scheduled (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    deliver_at TIMESTAMP WITH TIME ZONE NOT NULL,
    name VARCHAR(255),
    event_id UUID NOT NULL,
    key_hash SMALLINT NOT NULL,
    topic VARCHAR(255) NOT NULL,
    type VARCHAR(255) NOT NULL,
    source VARCHAR(255) NOT NULL,
    time TIMESTAMP WITH TIME ZONE NOT NULL,
    subject TEXT,
    datacontenttype VARCHAR(255),
    dataschema TEXT,
    correlationid VARCHAR(255),
    causationid VARCHAR(255),
    partitionkey VARCHAR(255),
    traceparent VARCHAR(255),
    tracestate TEXT,
    extensions JSONB,
    data BYTEA NOT NULL,
    PRIMARY KEY (id)
);

CREATE INDEX outbox_scheduled_due ON outbox_scheduled (deliver_at);

CREATE UNIQUE INDEX outbox_scheduled_event ON outbox_scheduled (event_id);

CREATE INDEX outbox_scheduled_name ON outbox_scheduled (correlationid, name) WHERE name IS NOT NULL;

INSERT INTO sagapost_schema (part, version) VALUES ('outbox', 1);

CREATE TABLE inbox_consumers (
    id SMALLINT GENERATED ALWAYS AS IDENTITY,
    name VARCHAR(255) NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name)
);

CREATE TABLE inbox_seen (
    consumer SMALLINT NOT NULL,
    key BYTEA NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (consumer, key)
);

CREATE INDEX inbox_seen_age ON inbox_seen (consumer, seen_at);

CREATE TABLE inbox_parked (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    consumer SMALLINT NOT NULL,
    key BYTEA NOT NULL,
    state VARCHAR(8) NOT NULL,
    reason VARCHAR(32) NOT NULL,
    error TEXT NOT NULL,
    traceback TEXT,
    attempts INTEGER DEFAULT '0' NOT NULL,
    crashes INTEGER DEFAULT '0' NOT NULL,
    claimed SMALLINT DEFAULT '0' NOT NULL,
    token BIGINT DEFAULT '0' NOT NULL,
    next_attempt_at TIMESTAMP WITH TIME ZONE,
    ordered SMALLINT DEFAULT '0' NOT NULL,
    parked_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    topic TEXT NOT NULL,
    event_id TEXT,
    source TEXT,
    type TEXT,
    time TIMESTAMP WITH TIME ZONE,
    correlationid TEXT,
    partitionkey TEXT,
    envelope TEXT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT inbox_parked_states CHECK (state IN ('waiting', 'behind', 'dead')),
    CONSTRAINT inbox_parked_waits_until CHECK ((state = 'waiting') = (next_attempt_at IS NOT NULL)),
    CONSTRAINT inbox_parked_behind_is_ordered CHECK (state <> 'behind' OR ordered = 1)
);

CREATE UNIQUE INDEX inbox_parked_key ON inbox_parked (consumer, key);

CREATE INDEX inbox_parked_order ON inbox_parked (consumer, partitionkey, id) WHERE ordered = 1;

CREATE INDEX inbox_parked_due ON inbox_parked (consumer, next_attempt_at) WHERE state = 'waiting';

CREATE TABLE inbox_attempts (
    consumer SMALLINT NOT NULL,
    key BYTEA NOT NULL,
    started INTEGER NOT NULL,
    last_started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (consumer, key)
);

CREATE TABLE inbox_audit (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    actor TEXT NOT NULL,
    action VARCHAR(16) NOT NULL,
    reason TEXT NOT NULL,
    consumer SMALLINT NOT NULL,
    parked_id BIGINT NOT NULL,
    event_id TEXT,
    source TEXT,
    type TEXT,
    envelope TEXT,
    data BYTEA,
    PRIMARY KEY (id),
    CONSTRAINT inbox_audit_actions CHECK (action IN ('redrive', 'discard', 'edit')),
    CONSTRAINT inbox_audit_keeps_what_was_changed CHECK (action = 'redrive' OR (envelope IS NOT NULL AND data IS NOT NULL))
);

CREATE INDEX inbox_audit_parked ON inbox_audit (parked_id);

INSERT INTO sagapost_schema (part, version) VALUES ('inbox', 1);

CREATE TABLE saga_states (
    service VARCHAR(255) NOT NULL,
    saga VARCHAR(255) NOT NULL,
    state VARCHAR(16) NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    rollback_started_at TIMESTAMP WITH TIME ZONE,
    rollback_reason TEXT,
    rollback_cause VARCHAR(255),
    rolled_back_at TIMESTAMP WITH TIME ZONE,
    pivoted_at TIMESTAMP WITH TIME ZONE,
    pivot_reason TEXT,
    due_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (service, saga),
    CONSTRAINT saga_states_known CHECK (state IN ('running', 'rolling_back', 'rolled_back', 'stuck')),
    CONSTRAINT saga_states_due_while_rolling_back CHECK ((state = 'rolling_back') = (due_at IS NOT NULL)),
    CONSTRAINT saga_states_rollback_recorded CHECK ((state = 'running') = (rollback_started_at IS NULL))
);

CREATE INDEX saga_states_due ON saga_states (service, due_at) WHERE state = 'rolling_back';

CREATE TABLE saga_compensations (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    service VARCHAR(255) NOT NULL,
    saga VARCHAR(255) NOT NULL,
    name VARCHAR(255) NOT NULL,
    arguments JSONB NOT NULL,
    step_event VARCHAR(255),
    state VARCHAR(16) DEFAULT 'pending' NOT NULL,
    attempts INTEGER DEFAULT '0' NOT NULL,
    last_error TEXT,
    recorded_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    decided_by TEXT,
    note TEXT,
    PRIMARY KEY (id),
    CONSTRAINT saga_compensations_known CHECK (state IN ('pending', 'done', 'needs_human', 'settled')),
    CONSTRAINT saga_compensations_ended CHECK ((state IN ('done', 'settled')) = (ended_at IS NOT NULL)),
    CONSTRAINT saga_compensations_say_why CHECK (state <> 'needs_human' OR last_error IS NOT NULL),
    CONSTRAINT saga_compensations_decisions_are_signed CHECK (state <> 'settled' OR (decided_by IS NOT NULL AND note IS NOT NULL))
);

CREATE INDEX saga_compensations_saga ON saga_compensations (service, saga, id);

CREATE TABLE saga_tasks (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    service VARCHAR(255) NOT NULL,
    saga VARCHAR(255) NOT NULL,
    name VARCHAR(255) NOT NULL,
    title TEXT NOT NULL,
    details JSONB NOT NULL,
    outcomes JSONB NOT NULL,
    step_event VARCHAR(255),
    topic TEXT,
    envelope TEXT,
    data BYTEA,
    source VARCHAR(255) NOT NULL,
    announce BOOLEAN NOT NULL,
    of_rollback BOOLEAN NOT NULL,
    state VARCHAR(16) NOT NULL,
    opened_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    outcome VARCHAR(255),
    decided_by TEXT,
    note TEXT,
    PRIMARY KEY (id),
    CONSTRAINT saga_tasks_known CHECK (state IN ('open', 'resolved', 'withdrawn')),
    CONSTRAINT saga_tasks_ended CHECK ((state = 'open') = (ended_at IS NULL)),
    CONSTRAINT saga_tasks_decisions_are_signed CHECK (state <> 'resolved' OR (outcome IS NOT NULL AND decided_by IS NOT NULL AND note IS NOT NULL))
);

CREATE INDEX saga_tasks_open ON saga_tasks (id) WHERE state = 'open';

CREATE INDEX saga_tasks_saga ON saga_tasks (service, saga);

CREATE TABLE saga_island_runs (
    id VARCHAR(36) NOT NULL,
    service VARCHAR(255) NOT NULL,
    island VARCHAR(255) NOT NULL,
    saga VARCHAR(255) NOT NULL,
    instance VARCHAR(255) NOT NULL,
    state VARCHAR(16) NOT NULL,
    data JSONB NOT NULL,
    reason TEXT,
    by_saga BOOLEAN NOT NULL,
    cause VARCHAR(255),
    partitionkey VARCHAR(255),
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT saga_island_runs_once UNIQUE (service, island, saga, instance),
    CONSTRAINT saga_island_runs_known CHECK (state IN ('running', 'undoing', 'completed', 'undone')),
    CONSTRAINT saga_island_runs_ended CHECK ((state IN ('completed', 'undone')) = (ended_at IS NOT NULL)),
    CONSTRAINT saga_island_runs_say_why CHECK ((state IN ('undoing', 'undone')) = (reason IS NOT NULL))
);

CREATE INDEX saga_island_runs_saga ON saga_island_runs (service, saga);

CREATE TABLE saga_island_steps (
    run VARCHAR(36) NOT NULL,
    step VARCHAR(255) NOT NULL,
    position INTEGER NOT NULL,
    stage INTEGER NOT NULL,
    state VARCHAR(16) NOT NULL,
    attempt INTEGER NOT NULL,
    uncertain BOOLEAN NOT NULL,
    undo BOOLEAN NOT NULL,
    reason TEXT,
    task INTEGER,
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (run, step),
    CONSTRAINT saga_island_steps_run FOREIGN KEY(run) REFERENCES saga_island_runs (id),
    CONSTRAINT saga_island_steps_known CHECK (state IN ('pending', 'waiting', 'done', 'skipped', 'failed', 'needs-human', 'undoing', 'undone')),
    CONSTRAINT saga_island_steps_tasks CHECK ((state = 'needs-human') = (task IS NOT NULL))
);

CREATE TABLE saga_island_commands (
    id VARCHAR(255) NOT NULL,
    run VARCHAR(36) NOT NULL,
    step VARCHAR(255) NOT NULL,
    attempt INTEGER NOT NULL,
    undo BOOLEAN NOT NULL,
    sent_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT saga_island_commands_run FOREIGN KEY(run) REFERENCES saga_island_runs (id)
);

INSERT INTO sagapost_schema (part, version) VALUES ('sagas', 1);


CREATE TABLE tracker_sagas (
	saga VARCHAR(255) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reason TEXT, 
	started_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	last_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	ended_at TIMESTAMP WITH TIME ZONE, 
	due_at TIMESTAMP WITH TIME ZONE, 
	events INTEGER NOT NULL, 
	truncated BOOLEAN NOT NULL, 
	history BYTEA NOT NULL, 
	version BIGINT NOT NULL, 
	PRIMARY KEY (saga), 
	CONSTRAINT tracker_sagas_known CHECK (state IN ('running', 'completed', 'compensating', 'compensated', 'waiting', 'stuck')), 
	CONSTRAINT tracker_sagas_ended CHECK ((state IN ('completed', 'compensated')) = (ended_at IS NOT NULL))
)
 WITH (fillfactor = 70);

CREATE INDEX tracker_sagas_state ON tracker_sagas (state, started_at, saga);

CREATE INDEX tracker_sagas_started ON tracker_sagas (started_at, saga);

CREATE INDEX tracker_sagas_due ON tracker_sagas (due_at) WHERE due_at IS NOT NULL;

CREATE INDEX tracker_sagas_ended_at ON tracker_sagas (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE tracker_keys (
	value VARCHAR(255) NOT NULL, 
	saga VARCHAR(255) NOT NULL, 
	name VARCHAR(255) NOT NULL, 
	PRIMARY KEY (value, saga, name)
);

CREATE INDEX tracker_keys_saga ON tracker_keys (saga);

CREATE TABLE tracker_observed (
	source VARCHAR(255) NOT NULL, 
	type VARCHAR(255) NOT NULL, 
	saga VARCHAR(255) NOT NULL, 
	first_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (source, type)
);

CREATE TABLE tracker_choreography (
	name VARCHAR(16) NOT NULL, 
	declared BYTEA NOT NULL, 
	PRIMARY KEY (name)
);

CREATE TABLE tracker_actions (
	saga VARCHAR(255) NOT NULL, 
	rule VARCHAR(100) NOT NULL, 
	state VARCHAR(8) NOT NULL, 
	key VARCHAR(64) NOT NULL, 
	reason TEXT NOT NULL, 
	url TEXT, 
	attempts INTEGER DEFAULT '0' NOT NULL, 
	last_error TEXT, 
	due_at TIMESTAMP WITH TIME ZONE, 
	decided_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
	PRIMARY KEY (saga, rule), 
	CONSTRAINT tracker_actions_known CHECK (state IN ('pending', 'done', 'failed')), 
	CONSTRAINT tracker_actions_due CHECK ((state = 'pending') = (due_at IS NOT NULL))
);

CREATE INDEX tracker_actions_pending ON tracker_actions (due_at) WHERE state = 'pending';

INSERT INTO sagapost_schema (part, version) VALUES ('tracker', 1);
