-- Which runs are there? Newest first, before run $before, $limit at most, with status $status where given.
select run, status, reason, goal, tasks, directive, principal, submitted_at, started_at, ended_at, duration_s,
       steps_total, input_tokens, output_tokens, unknown_calls, playbook, retry_of, stop_reason
from runs
where run < $before and ($status is null or status = $status)
order by run desc
limit $limit
