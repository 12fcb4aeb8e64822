-- What did all calls together use, from $since until before $until? A sum is of what servers reported, and null where
-- there were calls and none did; unknown_calls counts the others.
select count(*) as calls,
       count(*) filter (where input_tokens is null or output_tokens is null) as unknown_calls,
       case when count(*) = 0 then 0 else sum(input_tokens)::bigint end as input_tokens,
       case when count(*) = 0 then 0 else sum(output_tokens)::bigint end as output_tokens
from llm_calls
where said_at >= $since and said_at < $until
