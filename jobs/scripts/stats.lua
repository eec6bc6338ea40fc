-- Depth of every queue. Returns {{queue, queued, running, age of the oldest in seconds or ''}, ...}
local depths = {}
for _, name in ipairs(redis.call('SMEMBERS', 'denoised:queues')) do
  local head = redis.call('LINDEX', queue_key(name), 0)
  local since = head and tonumber(redis.call('HGET', job_key(head), 'submitted_us'))
  depths[#depths + 1] = { name, redis.call('LLEN', queue_key(name)),
    redis.call('ZCARD', 'rq:wip:' .. name),
    since and string.format('%.6f', now - since / 1e6) or '' }
end
return depths
