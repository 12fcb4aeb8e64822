-- What did the language models' calls use, by day and model? A count is unknown where a server reported none.
select strftime(said_at, '%Y-%m-%d') as day,
       coalesce(response_model, request_model) as model,
       count(*) as calls,
       count(*) filter (where input_tokens is null or output_tokens is null) as unknown_calls,
       sum(input_tokens)::bigint as input_tokens,
       sum(output_tokens)::bigint as output_tokens,
       sum(cached_tokens)::bigint as cached_tokens,
       sum(reasoning_tokens)::bigint as reasoning_tokens
from llm_calls
group by all
order by day desc, model
limit $limit
