-- A worker process has ended: takes back what it held, as the reaper would when its leases lapse.
-- Redis may have been restarted just before: unlike the reaper's, this word is no guess.
-- ARGV: worker, ttl, event ttl
-- Returns {{id, model, requeued|failed|canceled}, ...}
local lost, taken = {}, {}
for _, member in ipairs(redis.call('ZRANGE', 'denoised:wip', 0, -1)) do
  local id, exec = member:match('^([^:]+):(.+)$')
  local v = redis.call('HMGET', job_key(id), 'worker_name', 'exec')
  if v[1] == ARGV[1] and v[2] == exec then
    lost[#lost + 1] = { id = id, job = load_job(id) }
  end
end
for _, held in ipairs(newest_first(lost)) do
  settle_lost(held.id, held.job)
  taken[#taken + 1] = { held.id, held.job.model or '',
    put_back(held.id, held.job, '', 'worker_died', false, '', ARGV[2], ARGV[3]) }
end
return taken
