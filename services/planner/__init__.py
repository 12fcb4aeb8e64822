"""The planner: hears `goal.submitted`, says `plan.created` or `goal.rejected`. Planning itself is pure."""
