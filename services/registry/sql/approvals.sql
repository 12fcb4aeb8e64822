-- What was asked, the newest first? Of run $run and with status $status where given; $before is a `cursor`.
-- A question that nobody can answer any more, because its run has ended, does not count as pending.
select run, step, what, plan_hash, status, is_open, requested_at, expires_at, decided_at, approvers, approvals_needed,
       approved_by, rejected_by, requester, reason, run * 16384 + place as cursor
from approvals
where run * 16384 + place < $before
  and ($run is null or run = $run)
  and ($status is null or (status = $status and (is_open or status <> 'pending')))
order by cursor desc
limit $limit
