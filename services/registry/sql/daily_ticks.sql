-- What became of the schedules' ticks that were due from $since until before $until?
select schedule, outcome, count(distinct tick) as ticks, max(reason) as reason
from ticked
where due_at >= $since and due_at < $until and tick <= epoch(said_at) + 3600
group by 1, 2
order by schedule, outcome
limit $limit
