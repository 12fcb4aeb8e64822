-- What was asked in run $run, in the plan's order?
select run, step, what, plan_hash, status, is_open, requested_at, expires_at, decided_at, approvers, approvals_needed,
       approved_by, rejected_by, requester, reason
from approvals
where run = $run
order by place
