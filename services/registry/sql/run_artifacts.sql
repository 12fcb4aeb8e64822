-- What did run $run leave behind?
select name, step, sha256, size_bytes, media_type, from_run
from artifacts
where run = $run
order by name
