-- A worker process has ended: takes back what it held, as the reaper would when its leases lapse.
-- Redis may have been restarted just before: unlike the reaper's, this word is no guess.
-- ARGV: worker, ttl, event ttl
-- Returns {{id, model, requeued|failed|canceled}, ...}
local taken = {}
for _, member in ipairs(redis.call('ZRANGE', 'denoised:wip', 0, -1)) do
  local id, exec = member:match('^([^:]+):(.+)$')
  local v = redis.call('HMGET', job_key(id), 'worker_name', 'exec')
  if v[1] == ARGV[1] and v[2] == exec then
    local job = load_job(id)
    settle_lost(id, job)
    taken[#taken + 1] = { id, job.model or '',
      put_back(id, job, '', 'worker_died', false, '', ARGV[2], ARGV[3]) }
  end
end
return taken
