-- Depth of every queue, over all keys. Returns {{queue, queued, running, age of the oldest in
-- seconds or '', GPU-seconds of what waits or '' until measured}, ...}
local depths = {}
for _, name in ipairs(redis.call('SMEMBERS', 'denoised:queues')) do
  local queued, cost, oldest = 0, 0, nil
  local mean = mean_cost(name:match('^(.*):') or name)
  for _, owner in ipairs(owners_of(name)) do
    local lane = lane_name(name, owner)
    local length = redis.call('LLEN', queue_key(lane))
    local since = head_since(name, owner)
    if since and (not oldest or since < oldest) then oldest = since end
    local seconds = lane_cost(lane, length, mean)
    queued, cost = queued + length, cost and seconds and cost + seconds
  end
  depths[#depths + 1] = { name, queued, redis.call('ZCARD', 'rq:wip:' .. name),
    oldest and string.format('%.6f', now - oldest / 1e6) or '',
    mean and cost and string.format('%.6f', cost) or '' }
end
return depths
