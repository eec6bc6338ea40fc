-- Depth of every queue, over all keys. Returns {{queue, queued, running, age of the oldest in
-- seconds or '', GPU-seconds of what waits or '' until measured}, ...}
local depths = {}
for _, name in ipairs(redis.call('SMEMBERS', 'denoised:queues')) do
  local queued, cost, oldest = 0, 0, nil
  local mean = mean_cost(name:match('^(.*):') or name)
  local lanes, lengths = lanes_of(name)
  local costs = lane_costs(lanes, lengths, mean)
  for i, owner in ipairs(owners_of(name)) do
    local since = head_since(name, owner)
    if since and (not oldest or since < oldest) then oldest = since end
    queued, cost = queued + lengths[i], cost and costs[i] and cost + costs[i]
  end
  depths[#depths + 1] = { name, queued, redis.call('ZCARD', 'rq:wip:' .. name),
    oldest and string.format('%.6f', now - oldest / 1e6) or '',
    mean and cost and string.format('%.6f', cost) or '' }
end
return depths
