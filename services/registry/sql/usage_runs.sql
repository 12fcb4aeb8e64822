-- How did the runs from $first to $last end, and how long did they take?
select status, runs, p[1] as p50_s, p[2] as p95_s, repeated_runs
from (
    select status, count(*) as runs, quantile_cont(duration_s, [0.5, 0.95]) as p,
           count(*) filter (where retry_of is not null) as repeated_runs
    from runs
    where run between $first and $last
    group by status
)
order by runs desc, status
