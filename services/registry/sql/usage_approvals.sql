-- How were the questions of the runs from $first to $last answered, and how long were the answers waited for?
select status, count(*) as approvals,
       quantile_cont(epoch(decided_at - requested_at), 0.5) as p50_wait_s,
       quantile_cont(epoch(decided_at - requested_at), 0.95) as p95_wait_s
from approvals
where run between $first and $last
group by status
order by approvals desc, status
