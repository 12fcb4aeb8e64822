-- How did the runs from $first to $last end, and how long did they take?
select status, count(*) as runs, quantile_cont(duration_s, 0.5) as p50_s, quantile_cont(duration_s, 0.95) as p95_s,
       count(*) filter (where retry_of is not null) as repeated_runs
from runs
where run between $first and $last
group by status
order by runs desc, status
