-- Where a trace goes on: W3C trace contexts (traceparent, version 00, sampled). Null: not traced. Nothing else depends on them.
ALTER TABLE trajectories  ADD COLUMN trace_context text;  -- of the first event that came with one: the agent's
ALTER TABLE batches       ADD COLUMN trace_context text;  -- of the span that made it ready; its trace goes on to the model
ALTER TABLE training_jobs ADD COLUMN trace_context text;  -- of the batch's announcement
ALTER TABLE models        ADD COLUMN trace_context text;  -- of the span that registered it
