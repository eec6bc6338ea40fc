-- Takes jobs back whose lease has lapsed: front of the queue, or failed when attempts are used up.
-- After a Redis restart the leases on disk are old while the workers live: nothing is reaped until
-- the server has been up long enough for every living worker to have beaten its heart.
-- ARGV: lease seconds, most jobs per call, trace for worker_lost, ttl, event ttl
-- Returns {{id, model, requeued|failed|canceled}, ...}
local uptime = tonumber(redis.call('INFO', 'server'):match('uptime_in_seconds:(%d+)'))
if uptime <= tonumber(ARGV[1]) + 1 then return {} end
local reaped = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', 'denoised:wip', '-inf', now,
    'LIMIT', 0, ARGV[2])) do
  local id, exec = member:match('^([^:]+):(.+)$')
  local job = load_job(id)
  if job and job.exec == exec then
    reaped[#reaped + 1] = { id, job.model or '',
      put_back(id, job, '', 'lease_lapsed', false, ARGV[3], ARGV[4], ARGV[5]) }
  else
    redis.call('ZREM', 'denoised:wip', member)
  end
end
return reaped
