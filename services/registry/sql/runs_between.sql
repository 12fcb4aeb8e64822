-- Which runs were submitted from $since until before $until? Their numbers grow with the time, so two of them say all.
select coalesce(min(run), 1) as first, coalesce(max(run), 0) as last
from runs
where submitted_at >= $since and submitted_at < $until
