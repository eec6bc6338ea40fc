-- Ends a job; only the holder of the lease may. Sent twice, it is done once.
-- ARGV: id, execution id, status, error JSON or '', outputs JSON or '', event fragment,
--       return value (base64) or '', trace (base64) or '', gpu seconds, steps, resumed steps,
--       ttl, event ttl
-- Returns {0} fenced off | {2} done by an earlier send
--         | {1, status, seconds it ran, seconds since the cancel request or ''}
local id, exec, status = ARGV[1], ARGV[2], ARGV[3]
local ttl, event_ttl = ARGV[12], ARGV[13]
local job = load_job(id)
if not job then return { 0 } end
if job.exec ~= exec then
  if job.last_exec == exec and job.final_event then return { 2 } end
  return { 0 }
end
add_usage(id, ARGV[9], ARGV[10], ARGV[11])
redis.call('LPUSH', 'denoised:finishes', string.format('%.6f', now))
redis.call('LTRIM', 'denoised:finishes', 0, 63)
if job.status == 'canceled' then status = 'canceled' end
if status == 'canceled' then
  settle_cancelled(id, job, exec, CANCELLED_WHILE_RUNNING, ttl, event_ttl)
else
  local result = status == 'finished' and { 'type', '1', 'return_value', ARGV[7] }
    or { 'type', '2', 'exc_string', ARGV[8] }
  -- The last reports may have been lost while Redis was away.
  if status == 'finished' then
    redis.call('HSET', job_key(id), 'step', redis.call('HGET', job_key(id), 'total_steps') or 0)
  end
  settle(id, job, exec, { status = status, error = ARGV[4], outputs = ARGV[5],
    extra = ARGV[6], result = result }, ttl, event_ttl)
end
return { 1, status, string.format('%.6f', (now_us - job.started_us) / 1e6),
  job.cancel and string.format('%.6f', (now_us - job.cancel) / 1e6) or '' }
