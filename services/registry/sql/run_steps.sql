-- What did the steps of run $run do?
select step, kind, task, status, attempts, host, dispatched_at, ended_at, duration_s, error, message,
       cause, reused_from, waits_until
from steps
where run = $run
order by place
