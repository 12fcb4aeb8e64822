-- What is known of run $run?
select run, status, reason, goal, tasks, directive, principal, plan_hash, submitted_at, started_at, ended_at,
       duration_s, steps_total, input_tokens, output_tokens, unknown_calls, playbook, retry_of, stop_reason
from runs
where run = $run
