-- Every column's unit stands in its name; times are UTC with microseconds, from the stream's stamps.
create table if not exists folded (
    stream varchar not null,
    created varchar not null, -- when the stream was made: tells one NATS from another
    seq ubigint not null,     -- everything up to here is in the tables
    shape varchar not null    -- digest of this file: tables of another one are not written to
);

create table if not exists events (
    seq ubigint not null,
    said_at timestamp not null,
    subject varchar not null,
    kind varchar not null,
    run ubigint,              -- null where the subject names none
    step varchar,
    attempt uinteger,
    size_bytes uinteger not null,
    applied boolean not null, -- false: the fold let it change nothing, `note` says why
    note varchar,
    unreadable varchar,       -- why it could not be read as the event of its subject; null when it could
    body varchar              -- the payload; null when it is not text, cut when it is unreadable and long
);

create table if not exists runs (
    run ubigint not null,
    principal varchar,
    goal varchar,
    tasks varchar[],
    directive varchar,
    status varchar not null,
    reason varchar,
    plan_hash varchar,
    submitted_at timestamp not null,
    started_at timestamp,
    ended_at timestamp,
    duration_s double,
    steps_total uinteger not null,
    input_tokens ubigint not null,
    output_tokens ubigint not null,
    unknown_calls uinteger not null,
    playbook varchar,
    retry_of ubigint,         -- the run that this one repeats
    stop_reason varchar       -- why nothing more may start; there before the end, and after it
);

create table if not exists steps (
    run ubigint not null,
    place uinteger not null,  -- its place in the plan, from 0
    step varchar not null,
    kind varchar not null,
    task varchar,             -- null for what the executor performs itself
    status varchar not null,
    attempts uinteger not null,
    host varchar,
    dispatched_at timestamp,
    ended_at timestamp,
    duration_s double,
    error varchar,
    message varchar,
    cause varchar,            -- why it was skipped, for programs
    reused_from ubigint,      -- the run whose result stands for its own
    waits_until timestamp     -- it rests, waits, or may be approved until then
);

create table if not exists approvals (
    run ubigint not null,
    place uinteger not null,  -- 0: the whole run; a step's place in the plan, from 1
    step varchar not null,    -- `run` for the whole run
    what varchar not null,
    plan_hash varchar not null,
    status varchar not null,
    is_open boolean not null, -- an answer can still count
    requested_at timestamp not null,
    expires_at timestamp not null,
    decided_at timestamp,
    approvers varchar[] not null, -- empty: anybody
    approvals_needed uinteger not null,
    approved_by varchar[] not null, -- '' is somebody who used the bare subject
    rejected_by varchar,
    requester varchar,
    reason varchar
);

create table if not exists artifacts (
    run ubigint not null,
    step varchar not null,
    name varchar not null,
    sha256 varchar not null,
    size_bytes ubigint not null,
    media_type varchar not null,
    from_run ubigint          -- the run that holds the bytes, where the step's result was reused
);

create table if not exists llm_calls (
    seq ubigint not null,
    said_at timestamp not null,
    run ubigint not null,
    step varchar not null,
    call varchar not null,
    request_model varchar not null,
    response_model varchar,
    input_tokens ubigint,     -- null: the server did not report it
    output_tokens ubigint,
    cached_tokens ubigint,
    reasoning_tokens ubigint,
    duration_s double,
    outcome varchar not null
);
