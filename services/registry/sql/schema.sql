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

create table if not exists plans (
    run ubigint not null,
    plan_hash varchar not null,
    directive varchar not null,
    playbook varchar,
    playbook_version varchar,
    catalogue_version varchar not null,
    rules_version varchar not null,
    steps_total uinteger not null,
    max_steps uinteger not null,
    time_budget_s uinteger not null,
    token_budget ubigint not null,
    retry_of ubigint,
    planned_at timestamp not null
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

create table if not exists ended_attempts (
    run ubigint not null,
    step varchar not null,
    attempt uinteger not null,
    task varchar,             -- null for what the executor performs itself
    host varchar,             -- null where nobody has said it
    dispatched_at timestamp,  -- null: its dispatch was unreadable or too early, and it never ran
    ended_at timestamp not null,
    duration_s double,
    outcome varchar not null, -- a step's status word; failed also where another attempt follows
    error varchar
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
    attempt uinteger not null,
    directive varchar not null,
    task varchar,
    request_model varchar not null,
    response_model varchar,
    input_tokens ubigint,     -- null: the server did not report it
    output_tokens ubigint,
    cached_tokens ubigint,
    reasoning_tokens ubigint,
    duration_s double,
    outcome varchar not null
);

create table if not exists ticked (
    seq ubigint not null,
    said_at timestamp not null,
    schedule varchar not null,
    tick ubigint not null,    -- the epoch second at which it was due
    due_at timestamp not null,
    outcome varchar not null, -- ran, late, caught_up, coalesced, skipped
    reason varchar,
    schedule_version bigint not null,
    zone varchar not null
);

-- Every attempt of every step, the running ones, too.
create view if not exists attempts as
select run, step, attempt, task, host, dispatched_at, ended_at, duration_s, outcome, error from ended_attempts
union all
select run, step, attempts, task, host, dispatched_at, null, null, 'running', null from steps where status = 'running';

-- Every decided tick once, as the first that was said in its time, and the run that its goal began.
create view if not exists ticks as
select t.schedule, t.tick, t.due_at, t.said_at, t.outcome, t.reason, t.schedule_version, t.zone, r.run
from (
    select * from ticked
    where tick <= epoch(said_at) + 3600
    qualify row_number() over (partition by schedule, tick order by seq) = 1
) t
left join (select principal, min(run) as run from runs where principal like 'schedule\_%' escape '\' group by all) r
       on r.principal = 'schedule_' || t.schedule || '_' || t.tick;

-- Every host that has worked, and when last.
create view if not exists hosts as
select host, count(*) as attempts, count(*) filter (where outcome = 'failed') as failed,
       min(dispatched_at) as first_at, max(ended_at) as last_at
from ended_attempts
where host is not null
group by host;

create view if not exists active_runs as
select * from runs where status in ('pending', 'queued', 'awaiting_approval', 'running');

create view if not exists ended_runs as
select * from runs
where status in ('succeeded', 'failed', 'cancelled', 'rejected', 'timed_out', 'budget_exhausted', 'rolled_back');

create view if not exists open_approvals as
select * from approvals where is_open and status = 'pending';
