-- What did all calls together use, from $since until before $until?
select count(*) as calls,
       count(*) filter (where input_tokens is null or output_tokens is null) as unknown_calls,
       coalesce(sum(input_tokens), 0)::bigint as input_tokens,
       coalesce(sum(output_tokens), 0)::bigint as output_tokens
from llm_calls
where said_at >= $since and said_at < $until
