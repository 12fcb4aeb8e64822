-- How much is in the ledger?
select (select count(*) from events) as events,
       (select count(*) from events where not applied) as not_applied,
       (select count(*) from events where unreadable is not null) as unreadable,
       (select count(*) from runs) as runs,
       (select count(*) from steps) as steps,
       (select count(*) from approvals) as approvals,
       (select count(*) from artifacts) as artifacts,
       (select count(*) from llm_calls) as llm_calls
