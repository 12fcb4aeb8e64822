-- How did the steps of the runs from $first to $last end, by task, how long did they take, how often were they retried?
-- A step that was reused did not run here. One sum is half of the time, so retries are told from it.
select task, status, steps, attempts, retries, p[1] as p50_s, p[2] as p95_s
from (
    select coalesce(task, kind) as task, status, count(*) as steps, sum(attempts)::bigint as attempts,
           (sum(attempts) + count(*) filter (where attempts = 0) - count(*))::bigint as retries,
           quantile_cont(duration_s, [0.5, 0.95]) as p
    from steps
    where run between $first and $last and reused_from is null
    group by 1, 2
)
order by task, steps desc, status
