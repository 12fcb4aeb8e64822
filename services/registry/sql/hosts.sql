-- Which hosts have worked, and when last?
select host, count(*) as steps, count(*) filter (where status = 'failed') as failed, max(ended_at) as last_at
from steps
where host is not null and reused_from is null
group by host
order by host
