CREATE TABLE sagapost_schema (
    part VARCHAR(32) NOT NULL,
    version INTEGER NOT NULL,
    installed_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    PRIMARY KEY (part)
);

CREATE TABLE outbox_relays (
    relay CHAR(32) NOT NULL,
    expires_at DATETIME NOT NULL,
    idle SMALLINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (relay)
);

CREATE TABLE outbox_leases (
    partition SMALLINT NOT NULL,
    owner CHAR(32),
    token BIGINT DEFAULT '0' NOT NULL,
    expires_at DATETIME,
    PRIMARY KEY (partition),
    CONSTRAINT outbox_lease_owner_expires CHECK ((owner IS NULL) = (expires_at IS NULL))
);

CREATE TABLE outbox (
    position INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    xid INTEGER DEFAULT 0 NOT NULL,
    event_id CHAR(32) NOT NULL,
    key_hash SMALLINT NOT NULL,
    topic VARCHAR(255) NOT NULL,
    type VARCHAR(255) NOT NULL,
    source VARCHAR(255) NOT NULL,
    time DATETIME NOT NULL,
    subject TEXT,
    datacontenttype VARCHAR(255),
    dataschema TEXT,
    correlationid VARCHAR(255),
    causationid VARCHAR(255),
    partitionkey VARCHAR(255),
    traceparent VARCHAR(255),
    tracestate TEXT,
    extensions JSON,
    data BLOB NOT NULL,
    attempts SMALLINT DEFAULT '0' NOT NULL,
    next_attempt_at DATETIME,
    last_error TEXT,
    CONSTRAINT outbox_refused_rows_say_why CHECK ((attempts = 0) = (next_attempt_at IS NULL) AND (attempts = 0) = (last_error IS NULL)),
    CONSTRAINT outbox_key_hash_range CHECK (key_hash >= 0)
);

CREATE INDEX outbox_refused ON outbox (next_attempt_at) WHERE attempts > 0;

CREATE TABLE outbox_dead (
    position INTEGER NOT NULL,
    event_id CHAR(32) NOT NULL,
    key_hash SMALLINT NOT NULL,
    topic VARCHAR(255) NOT NULL,
    type VARCHAR(255) NOT NULL,
    source VARCHAR(255) NOT NULL,
    time DATETIME NOT NULL,
    subject TEXT,
    datacontenttype VARCHAR(255),
    dataschema TEXT,
    correlationid VARCHAR(255),
    causationid VARCHAR(255),
    partitionkey VARCHAR(255),
    traceparent VARCHAR(255),
    tracestate TEXT,
    extensions JSON,
    data BLOB NOT NULL,
    attempts SMALLINT NOT NULL,
    last_error TEXT NOT NULL,
    died_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    blocks_key SMALLINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (position)
);

CREATE INDEX outbox_dead_blocking ON outbox_dead (partitionkey) WHERE blocks_key = 1;

CREATE TABLE outbox_scheduled (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    deliver_at DATETIME NOT NULL,
    name VARCHAR(255),
    event_id CHAR(32) NOT NULL,
    key_hash SMALLINT NOT NULL,
    topic VARCHAR(255) NOT NULL,
    type VARCHAR(255) NOT NULL,
    source VARCHAR(255) NOT NULL,
    time DATETIME NOT NULL,
    subject TEXT,
    datacontenttype VARCHAR(255),
    dataschema TEXT,
    correlationid VARCHAR(255),
    causationid VARCHAR(255),
    partitionkey VARCHAR(255),
    traceparent VARCHAR(255),
    tracestate TEXT,
    extensions JSON,
    data BLOB NOT NULL
);

CREATE INDEX outbox_scheduled_name ON outbox_scheduled (correlationid, name) WHERE name IS NOT NULL;

CREATE UNIQUE INDEX outbox_scheduled_event ON outbox_scheduled (event_id);

CREATE INDEX outbox_scheduled_due ON outbox_scheduled (deliver_at);

INSERT INTO sagapost_schema (part, version) VALUES ('outbox', 1);

CREATE TABLE inbox_consumers (
    id INTEGER NOT NULL,
    name VARCHAR(255) NOT NULL,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name)
);

CREATE TABLE inbox_seen (
    consumer SMALLINT NOT NULL,
    "key" BLOB NOT NULL,
    seen_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    PRIMARY KEY (consumer, "key")
);

CREATE INDEX inbox_seen_age ON inbox_seen (consumer, seen_at);

CREATE TABLE inbox_parked (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    consumer SMALLINT NOT NULL,
    "key" BLOB NOT NULL,
    state VARCHAR(8) NOT NULL,
    reason VARCHAR(32) NOT NULL,
    error TEXT NOT NULL,
    traceback TEXT,
    attempts INTEGER DEFAULT '0' NOT NULL,
    crashes INTEGER DEFAULT '0' NOT NULL,
    claimed SMALLINT DEFAULT '0' NOT NULL,
    token BIGINT DEFAULT '0' NOT NULL,
    next_attempt_at DATETIME,
    ordered SMALLINT DEFAULT '0' NOT NULL,
    parked_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    topic TEXT NOT NULL,
    event_id TEXT,
    source TEXT,
    type TEXT,
    time DATETIME,
    correlationid TEXT,
    partitionkey TEXT,
    envelope TEXT NOT NULL,
    data BLOB NOT NULL,
    CONSTRAINT inbox_parked_states CHECK (state IN ('waiting', 'behind', 'dead')),
    CONSTRAINT inbox_parked_waits_until CHECK ((state = 'waiting') = (next_attempt_at IS NOT NULL)),
    CONSTRAINT inbox_parked_behind_is_ordered CHECK (state <> 'behind' OR ordered = 1)
);

CREATE INDEX inbox_parked_due ON inbox_parked (consumer, next_attempt_at) WHERE state = 'waiting';

CREATE INDEX inbox_parked_order ON inbox_parked (consumer, partitionkey, id) WHERE ordered = 1;

CREATE UNIQUE INDEX inbox_parked_key ON inbox_parked (consumer, "key");

CREATE TABLE inbox_attempts (
    consumer SMALLINT NOT NULL,
    "key" BLOB NOT NULL,
    started INTEGER NOT NULL,
    last_started_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    PRIMARY KEY (consumer, "key")
);

CREATE TABLE inbox_audit (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    actor TEXT NOT NULL,
    action VARCHAR(16) NOT NULL,
    reason TEXT NOT NULL,
    consumer SMALLINT NOT NULL,
    parked_id INTEGER NOT NULL,
    event_id TEXT,
    source TEXT,
    type TEXT,
    envelope TEXT,
    data BLOB,
    CONSTRAINT inbox_audit_actions CHECK (action IN ('redrive', 'discard', 'edit')),
    CONSTRAINT inbox_audit_keeps_what_was_changed CHECK (action = 'redrive' OR (envelope IS NOT NULL AND data IS NOT NULL))
);

CREATE INDEX inbox_audit_parked ON inbox_audit (parked_id);

INSERT INTO sagapost_schema (part, version) VALUES ('inbox', 1);

CREATE TABLE saga_states (
    service VARCHAR(255) NOT NULL,
    saga VARCHAR(255) NOT NULL,
    state VARCHAR(16) NOT NULL,
    started_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    rollback_started_at DATETIME,
    rollback_reason TEXT,
    rollback_cause VARCHAR(255),
    rolled_back_at DATETIME,
    pivoted_at DATETIME,
    pivot_reason TEXT,
    due_at DATETIME,
    PRIMARY KEY (service, saga),
    CONSTRAINT saga_states_known CHECK (state IN ('running', 'rolling_back', 'rolled_back', 'stuck')),
    CONSTRAINT saga_states_due_while_rolling_back CHECK ((state = 'rolling_back') = (due_at IS NOT NULL)),
    CONSTRAINT saga_states_rollback_recorded CHECK ((state = 'running') = (rollback_started_at IS NULL))
);

CREATE INDEX saga_states_due ON saga_states (service, due_at) WHERE state = 'rolling_back';

CREATE TABLE saga_compensations (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    service VARCHAR(255) NOT NULL,
    saga VARCHAR(255) NOT NULL,
    name VARCHAR(255) NOT NULL,
    arguments JSON NOT NULL,
    step_event VARCHAR(255),
    state VARCHAR(16) DEFAULT 'pending' NOT NULL,
    attempts INTEGER DEFAULT '0' NOT NULL,
    last_error TEXT,
    recorded_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    ended_at DATETIME,
    decided_by TEXT,
    note TEXT,
    CONSTRAINT saga_compensations_known CHECK (state IN ('pending', 'done', 'needs_human', 'settled')),
    CONSTRAINT saga_compensations_ended CHECK ((state IN ('done', 'settled')) = (ended_at IS NOT NULL)),
    CONSTRAINT saga_compensations_say_why CHECK (state <> 'needs_human' OR last_error IS NOT NULL),
    CONSTRAINT saga_compensations_decisions_are_signed CHECK (state <> 'settled' OR (decided_by IS NOT NULL AND note IS NOT NULL))
);

CREATE INDEX saga_compensations_saga ON saga_compensations (service, saga, id);

CREATE TABLE saga_tasks (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    service VARCHAR(255) NOT NULL,
    saga VARCHAR(255) NOT NULL,
    name VARCHAR(255) NOT NULL,
    title TEXT NOT NULL,
    details JSON NOT NULL,
    outcomes JSON NOT NULL,
    step_event VARCHAR(255),
    topic TEXT,
    envelope TEXT,
    data BLOB,
    source VARCHAR(255) NOT NULL,
    announce BOOLEAN NOT NULL,
    of_rollback BOOLEAN NOT NULL,
    state VARCHAR(16) NOT NULL,
    opened_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    due_at DATETIME,
    ended_at DATETIME,
    outcome VARCHAR(255),
    decided_by TEXT,
    note TEXT,
    CONSTRAINT saga_tasks_known CHECK (state IN ('open', 'resolved', 'withdrawn')),
    CONSTRAINT saga_tasks_ended CHECK ((state = 'open') = (ended_at IS NULL)),
    CONSTRAINT saga_tasks_decisions_are_signed CHECK (state <> 'resolved' OR (outcome IS NOT NULL AND decided_by IS NOT NULL AND note IS NOT NULL))
);

CREATE INDEX saga_tasks_saga ON saga_tasks (service, saga);

CREATE INDEX saga_tasks_open ON saga_tasks (id) WHERE state = 'open';

CREATE TABLE saga_island_runs (
    id VARCHAR(36) NOT NULL,
    service VARCHAR(255) NOT NULL,
    island VARCHAR(255) NOT NULL,
    saga VARCHAR(255) NOT NULL,
    instance VARCHAR(255) NOT NULL,
    state VARCHAR(16) NOT NULL,
    data JSON NOT NULL,
    reason TEXT,
    by_saga BOOLEAN NOT NULL,
    cause VARCHAR(255),
    partitionkey VARCHAR(255),
    started_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    ended_at DATETIME,
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
    changed_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
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
    sent_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT saga_island_commands_run FOREIGN KEY(run) REFERENCES saga_island_runs (id)
);

INSERT INTO sagapost_schema (part, version) VALUES ('sagas', 1);


CREATE TABLE tracker_sagas (
	saga VARCHAR(255) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reason TEXT, 
	started_at DATETIME NOT NULL, 
	last_at DATETIME NOT NULL, 
	ended_at DATETIME, 
	due_at DATETIME, 
	events INTEGER NOT NULL, 
	truncated BOOLEAN NOT NULL, 
	history BLOB NOT NULL, 
	version INTEGER NOT NULL, 
	PRIMARY KEY (saga), 
	CONSTRAINT tracker_sagas_known CHECK (state IN ('running', 'completed', 'compensating', 'compensated', 'waiting', 'stuck')), 
	CONSTRAINT tracker_sagas_ended CHECK ((state IN ('completed', 'compensated')) = (ended_at IS NOT NULL))
);

CREATE INDEX tracker_sagas_started ON tracker_sagas (started_at, saga);

CREATE INDEX tracker_sagas_due ON tracker_sagas (due_at) WHERE due_at IS NOT NULL;

CREATE INDEX tracker_sagas_state ON tracker_sagas (state, started_at, saga);

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
	first_at DATETIME NOT NULL, 
	PRIMARY KEY (source, type)
);

CREATE TABLE tracker_choreography (
	name VARCHAR(16) NOT NULL, 
	declared BLOB NOT NULL, 
	PRIMARY KEY (name)
);

CREATE TABLE tracker_actions (
	saga VARCHAR(255) NOT NULL, 
	rule VARCHAR(100) NOT NULL, 
	state VARCHAR(8) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	reason TEXT NOT NULL, 
	url TEXT, 
	attempts INTEGER DEFAULT '0' NOT NULL, 
	last_error TEXT, 
	due_at DATETIME, 
	decided_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL, 
	PRIMARY KEY (saga, rule), 
	CONSTRAINT tracker_actions_known CHECK (state IN ('pending', 'done', 'failed')), 
	CONSTRAINT tracker_actions_due CHECK ((state = 'pending') = (due_at IS NOT NULL))
);

CREATE INDEX tracker_actions_pending ON tracker_actions (due_at) WHERE state = 'pending';

INSERT INTO sagapost_schema (part, version) VALUES ('tracker', 1);
