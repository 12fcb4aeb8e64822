-- What did the language models' calls use, by task, from $since until before $until? Behind $page, $limit at most.
-- A sum is of what servers reported, and null where none did; unknown_calls counts the others.
select coalesce(task, '(none)') as key,
       count(*) as calls,
       count(*) filter (where input_tokens is null or output_tokens is null) as unknown_calls,
       sum(input_tokens)::bigint as input_tokens,
       sum(output_tokens)::bigint as output_tokens,
       sum(cached_tokens)::bigint as cached_tokens,
       sum(reasoning_tokens)::bigint as reasoning_tokens,
       round(sum(duration_s), 6) as duration_s
from llm_calls
where said_at >= $since and said_at < $until
group by 1
having $page is null or key > $page
order by key asc
limit $limit
