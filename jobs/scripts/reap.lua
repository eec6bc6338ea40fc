-- Takes jobs back whose lease has lapsed: front of the queue, or failed when attempts are used up.
-- Also ends what RQ's tools cancelled while it was queued: they write no event and no expiry; and
-- what waits past its deadline.
-- After a Redis restart the leases on disk are old while the workers live: nothing is reaped until
-- the server has been up long enough for every living worker to have beaten its heart. The same holds
-- after a Redis that was frozen, which shows in that nobody has called this for longer than the
-- patience: leases are then left alone for as long; never for longer, should the clock be set back.
-- ARGV: lease seconds, most jobs per call, ttl, event ttl, patience in ms
-- Returns {{id, model, requeued|failed|canceled}, ...}
local afresh = now + ARGV[1] + 1
local reap_from = math.min(tonumber(redis.call('GET', 'denoised:reap_from') or afresh), afresh)
redis.call('SET', 'denoised:reap_from', string.format('%.6f', reap_from), 'PX', ARGV[5])
local uptime = tonumber(redis.call('INFO', 'server'):match('uptime_in_seconds:(-?%d+)'))
-- Negative when the clock was set back to before the start: that tells nothing.
if uptime >= 0 and uptime <= tonumber(ARGV[1]) + 1 then return {} end
local reaped, lost = {}, {}
local lapsed = now < reap_from and {} or
  redis.call('ZRANGEBYSCORE', 'denoised:wip', '-inf', now, 'LIMIT', 0, ARGV[2])
for _, member in ipairs(lapsed) do
  local id, exec = member:match('^([^:]+):(.+)$')
  local job = load_job(id)
  if job and job.exec == exec then
    lost[#lost + 1] = { id = id, job = job }
  else
    -- A lease whose job is gone (deleted by RQ's tools) or was claimed anew.
    redis.call('ZREM', 'denoised:wip', member)
    for _, name in ipairs(redis.call('SMEMBERS', 'denoised:queues')) do
      redis.call('ZREM', 'rq:wip:' .. name, member)
    end
    if not job then
      -- The hash knew whose it was.
      for _, owner in ipairs(redis.call('HKEYS', 'denoised:served')) do
        redis.call('SREM', 'denoised:held:' .. owner, id)
      end
    end
  end
end
for _, held in ipairs(newest_first(lost)) do
  settle_lost(held.id, held.job)
  reaped[#reaped + 1] = { held.id, held.job.model or '',
    put_back(held.id, held.job, '', 'lease_lapsed', false, '', ARGV[3], ARGV[4]) }
end
for _, name in ipairs(redis.call('SMEMBERS', 'denoised:queues')) do
  -- RQ enters them as of now, our scripts in the future. One under a lease is its worker's to end.
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'rq:canceled:' .. name, '-inf', now,
      'LIMIT', 0, ARGV[2])) do
    local job = load_job(id)
    if not job then
      redis.call('ZREM', 'rq:canceled:' .. name, id)
    elseif job.status == 'canceled' and not job.exec and not job.final_event then
      leave_lane(id, job)
      settle_cancelled(id, job, '', CANCELLED_WHILE_QUEUED, ARGV[3], ARGV[4])
      reaped[#reaped + 1] = { id, job.model or '', 'canceled' }
    end
  end
end
-- What waits past its deadline will never be in time; what runs is stopped at its next step.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'denoised:deadlines', '-inf', now,
    'LIMIT', 0, ARGV[2])) do
  local job = load_job(id)
  if job and job.status == 'queued' and job.is_late then
    leave_lane(id, job)
    settle_late(id, job, '', ARGV[3], ARGV[4])
    reaped[#reaped + 1] = { id, job.model or '', 'failed' }
  elseif job and job.status == 'started' then
    redis.call('ZADD', 'denoised:deadlines', now + 1, id)
  else
    redis.call('ZREM', 'denoised:deadlines', id)
  end
end
return reaped
