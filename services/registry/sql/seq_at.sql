-- Which was the last event that was said at or before $at?
select coalesce(max(seq), 0) as seq from events where said_at <= $at
