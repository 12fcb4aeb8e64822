-- How do the runs that were submitted from $since until before $until stand?
select status, count(*) as runs, quantile_cont(duration_s, 0.5) as p50_s, quantile_cont(duration_s, 0.95) as p95_s
from runs
where submitted_at >= $since and submitted_at < $until
group by status
order by runs desc, status
