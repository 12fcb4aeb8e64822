-- What did the language models' calls use, by day and model, from $since until before $until? Newest day first, behind
-- day $day and model $model. A sum is of what servers reported, and null where none did; unknown_calls counts the others.
select strftime(day, '%Y-%m-%d') as day, * exclude (day)
from (
    select said_at::date as day,
           coalesce(response_model, request_model) as model,
           count(*) as calls,
           count(*) filter (where input_tokens is null or output_tokens is null) as unknown_calls,
           sum(input_tokens)::bigint as input_tokens,
           sum(output_tokens)::bigint as output_tokens,
           sum(cached_tokens)::bigint as cached_tokens,
           sum(reasoning_tokens)::bigint as reasoning_tokens,
           round(sum(duration_s), 6) as duration_s
    from llm_calls
    where said_at >= $since and said_at < $until
    group by 1, 2
) t
where strftime(t.day, '%Y-%m-%d') < $day or (strftime(t.day, '%Y-%m-%d') = $day and model > $model)
order by t.day desc, model
limit $limit
