-- Which runs ended from $since until before $until otherwise than well, and why? Newest first, before run $page.
select r.run, r.status, r.directive, r.reason, r.ended_at, f.step, f.task, f.error, f.message
from (
    select * from runs
    where ended_at >= $since and ended_at < $until and status <> 'succeeded' and run < $page::ubigint
    order by run desc
    limit $limit
) r
left join (
    select run, arg_min(step, ended_at) as step, arg_min(task, ended_at) as task, arg_min(error, ended_at) as error,
           arg_min(message, ended_at) as message
    from steps
    where status = 'failed' and ended_at >= $since and ended_at < $until
    group by run
) f on f.run = r.run
order by r.run desc
