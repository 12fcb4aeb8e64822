-- The events of every run that has no end yet, or no goal: what a restarted fold starts from.
select subject, seq, said_at, body, unreadable
from events
where run in (
    select run from runs
    where status not in ('succeeded', 'failed', 'cancelled', 'rejected', 'timed_out', 'budget_exhausted', 'rolled_back')
)
or run > (select max(seq) from events)
order by seq
