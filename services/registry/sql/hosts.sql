-- Which hosts have worked, and when last? By name, behind $page, $limit at most.
select host, count(*) as steps, count(*) filter (where status = 'failed') as failed, max(ended_at) as last_at
from steps
where host is not null and reused_from is null and ($page is null or host > $page)
group by host
order by host
limit $limit
