-- Which questions were asked or decided from $since until before $until, how, and by whom? '' is somebody unnamed.
select status, case status when 'approved' then list_sort(approved_by) when 'rejected' then [rejected_by] else [] end
       as by_whom, count(*) as approvals, quantile_cont(epoch(decided_at - requested_at), 0.5) as p50_wait_s
from approvals
where coalesce(decided_at, requested_at) >= $since and coalesce(decided_at, requested_at) < $until
group by 1, 2
order by approvals desc, status, by_whom
limit $limit
