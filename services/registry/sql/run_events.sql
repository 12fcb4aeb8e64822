-- What happened in run $run, after event $after, $limit at most?
select seq, said_at, subject, kind, step, attempt, applied, note, body
from events
where (run = $run) and seq > $after
order by seq
limit $limit
