-- Which runs ended from $since until before $until otherwise than well, and why? Newest first, before run $page.
with ended as (
    select run, status, directive, reason, ended_at
    from runs
    where ended_at >= $since and ended_at < $until and status <> 'succeeded' and run < $page::ubigint
    order by run desc
    limit $limit
),
failed as (
    select run, arg_min(step, s.ended_at) as step, arg_min(task, s.ended_at) as task,
           arg_min(error, s.ended_at) as error, arg_min(message, s.ended_at) as message
    from steps s
    where status = 'failed' and run in (select run from ended)
    group by run
)
select e.run, e.status, e.directive, e.reason, e.ended_at, f.step, f.task, f.error, f.message
from ended e left join failed f using (run)
order by e.run desc
